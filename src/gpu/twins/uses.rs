//! What a shader does with an array.

use naga::{Block, Expression, Function, GlobalVariable, Handle, Literal, Module, Statement};

fn functions(module: &Module) -> impl Iterator<Item = &Function> {
    module.functions.iter().map(|(_, f)| f).chain(module.entry_points.iter().map(|e| &e.function))
}

/// Whether no shader asks the length of the array `var`, an element by a constant index, or a part of one.
pub(super) fn taken_whole(module: &Module, var: Handle<GlobalVariable>) -> bool {
    functions(module).all(|f| {
        let is_var = |e: Handle<Expression>| f.expressions[e] == Expression::GlobalVariable(var);
        let is_element = |e| matches!(f.expressions[e], Expression::Access { base, .. } if is_var(base));
        f.expressions.iter().all(|(_, e)| match *e {
            Expression::Access { base, .. } => !is_element(base),
            Expression::AccessIndex { base, .. } => !is_var(base) && !is_element(base),
            Expression::ArrayLength(array) => !is_var(array),
            _ => true,
        })
    })
}

/// What an invocation may do with the elements of an array.
#[derive(Clone, Copy, Default)]
pub(super) struct Uses {
    pub(super) loads: bool,
    stores: bool,
    /// It loads one after it stored one: by way of an image it need not see that.
    pub(super) loads_after_a_store: bool,
}

impl Uses {
    pub(super) fn of(module: &Module, var: Handle<GlobalVariable>) -> Self {
        let mut uses = Self::default();
        module.entry_points.iter().for_each(|e| uses.follow(module, var, &e.function, &e.function.body));
        uses
    }

    /// Goes through a block of `f` in the order in which it is executed, but for what stands under a constant
    /// condition that does not hold.
    fn follow(&mut self, module: &Module, var: Handle<GlobalVariable>, f: &Function, block: &Block) {
        let is_element = |pointer: Handle<Expression>| {
            matches!(f.expressions[pointer], Expression::Access { base, .. }
                if f.expressions[base] == Expression::GlobalVariable(var))
        };
        let is_load = |e| matches!(f.expressions[e], Expression::Load { pointer } if is_element(pointer));
        for statement in block {
            match statement {
                Statement::Emit(range) if range.clone().any(is_load) => {
                    self.loads = true;
                    self.loads_after_a_store |= self.stores;
                }
                Statement::Store { pointer, .. } if is_element(*pointer) => self.stores = true,
                Statement::Call { function, .. } => {
                    let callee = &module.functions[*function];
                    self.follow(module, var, callee, &callee.body);
                }
                Statement::Block(inner) => self.follow(module, var, f, inner),
                Statement::If { condition, accept, reject } => {
                    let holds = constant(module, f, *condition);
                    let ways = [(accept, Some(false)), (reject, Some(true))];
                    self.follow_one(module, var, f, ways.into_iter().filter(|w| w.1 != holds).map(|w| w.0));
                }
                // Some case comes after another where that one falls through: what is the same to a walk of all
                // of them, twice.
                Statement::Switch { cases, .. } => {
                    (0..2).for_each(|_| self.follow_one(module, var, f, cases.iter().map(|c| &c.body)));
                }
                Statement::Loop { body, continuing, .. } => {
                    for block in [body, continuing, body, continuing] {
                        self.follow(module, var, f, block);
                    }
                }
                _ => {}
            }
        }
    }

    /// One of these blocks is executed.
    fn follow_one<'a>(
        &mut self,
        module: &Module,
        var: Handle<GlobalVariable>,
        f: &Function,
        blocks: impl IntoIterator<Item = &'a Block>,
    ) {
        let before = *self;
        for block in blocks {
            let mut way = before;
            way.follow(module, var, f, block);
            self.loads |= way.loads;
            self.stores |= way.stores;
            self.loads_after_a_store |= way.loads_after_a_store;
        }
    }
}

/// Whether the constant of that name is there, and true.
pub(super) fn holds(module: &Module, name: &str) -> bool {
    let mut named = module.constants.iter().filter(|(_, c)| c.name.as_deref() == Some(name));
    named.any(|(_, c)| module.global_expressions[c.init] == Expression::Literal(Literal::Bool(true)))
}

/// What a condition always is, where it is written down.
pub(super) fn constant(module: &Module, f: &Function, condition: Handle<Expression>) -> Option<bool> {
    let expression = match f.expressions[condition] {
        Expression::Constant(constant) => &module.global_expressions[module.constants[constant].init],
        ref other => other,
    };
    match expression {
        Expression::Literal(Literal::Bool(holds)) => Some(*holds),
        _ => None,
    }
}
