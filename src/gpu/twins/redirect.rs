//! Loads and stores of the elements of twinned arrays, turned into calls.

use std::collections::{HashMap, HashSet};

use naga::{
    BinaryOperator, Block, Expression, Function, GlobalVariable, Handle, LocalVariable, Module, Range, Span,
    Statement,
};

use super::halves::{Lanes, Return, returns};
use super::uses::constant;

/// The functions that stand for loads and stores of one binding.
struct Twin {
    load: Handle<Function>,
    store: Option<Handle<Function>>,
    store_by_halves: Option<Handle<Function>>,
}

/// By the names of the functions in a module.
struct Twins {
    of: HashMap<Handle<GlobalVariable>, Twin>,
    is_alone: Option<Handle<Function>>,
}

impl Twins {
    fn of(module: &Module) -> Self {
        let named = |name: String| {
            module.functions.iter().find(|(_, f)| f.name.as_ref() == Some(&name)).map(|(handle, _)| handle)
        };
        let twin = |name: &String| {
            let [store, store_by_halves] =
                ["twin_store", "twin_store_by_halves"].map(|function| named(format!("{name}_{function}")));
            Some(Twin { load: named(format!("{name}_twin_load"))?, store, store_by_halves })
        };
        let of = module.global_variables.iter().filter_map(|(var, v)| Some((var, twin(v.name.as_ref()?)?)));
        Self { of: of.collect(), is_alone: named("twin_is_alone".to_owned()) }
    }
}

/// Has all of a module load and store by the functions that its text has for that.
pub(super) fn redirect(module: &mut Module) {
    let twins = Twins::of(module);
    let mut apart = HashSet::new();
    for i in 0..module.entry_points.len() {
        let function = std::mem::take(&mut module.entry_points[i].function);
        module.entry_points[i].function = Redirect::all(module, &twins, &mut apart, function, Lanes::All);
    }
    // What is called comes before its callers in a module.
    let functions: Vec<_> = module.functions.iter().map(|(handle, _)| handle).collect();
    for handle in functions.into_iter().rev() {
        let lanes = if apart.contains(&handle) { Lanes::Unknown } else { Lanes::All };
        let function = std::mem::take(&mut module.functions[handle]);
        module.functions[handle] = Redirect::all(module, &twins, &mut apart, function, lanes);
    }
}

/// Element `index` of a twinned array.
#[derive(Clone, Copy)]
struct Element<'a> {
    twin: &'a Twin,
    index: Handle<Expression>,
}

/// A walk through one function.
struct Redirect<'a> {
    module: &'a Module,
    twins: &'a Twins,
    /// The functions that some lanes enter without their partners.
    apart: &'a mut HashSet<Handle<Function>>,
    function: Function,
    /// Of those that came into the function.
    lanes: Lanes,
    /// What points to an element; nothing evaluates it any more.
    elements: HashMap<Handle<Expression>, Element<'a>>,
    /// What was a load and is the result of a call now.
    loads: HashMap<Handle<Expression>, Element<'a>>,
}

impl<'a> Redirect<'a> {
    fn all(
        module: &'a Module,
        twins: &'a Twins,
        apart: &'a mut HashSet<Handle<Function>>,
        mut function: Function,
        lanes: Lanes,
    ) -> Function {
        let expressions = &mut function.expressions;
        let elements: HashMap<_, _> = expressions
            .iter()
            .filter_map(|(handle, e)| {
                let Expression::Access { base, index } = *e else { return None };
                let Expression::GlobalVariable(var) = expressions[base] else { return None };
                Some((handle, Element { twin: twins.of.get(&var)?, index }))
            })
            .collect();
        let mut loads = HashMap::new();
        for (handle, e) in expressions.iter_mut() {
            if let Expression::Load { pointer } = *e
                && let Some(element) = elements.get(&pointer)
            {
                *e = Expression::CallResult(element.twin.load);
                loads.insert(handle, *element);
            }
        }
        let body = std::mem::take(&mut function.body);
        let mut walk = Self { module, twins, apart, function, lanes, elements, loads };
        walk.function.body = walk.block(body, true);
        walk.function
    }

    /// `at_the_top`: not below a branch nor in a loop.
    fn block(&mut self, block: Block, at_the_top: bool) -> Block {
        let mut to = Block::with_capacity(block.len());
        for (statement, span) in block.span_into_iter() {
            match statement {
                Statement::Emit(range) => self.emit(range, span, &mut to),
                Statement::Store { pointer, value } => self.store(pointer, value, at_the_top, span, &mut to),
                Statement::Call { function, .. } => {
                    if !(at_the_top && matches!(self.lanes, Lanes::All)) {
                        self.apart.insert(function);
                    }
                    to.push(statement, span);
                }
                Statement::Block(inner) => to.push(Statement::Block(self.block(inner, at_the_top)), span),
                Statement::If { condition, accept, reject } => {
                    // What a constant decides parts no lanes, and where it does not lead, none returns.
                    let holds = constant(self.module, &self.function, condition);
                    if at_the_top && holds.is_none() {
                        match Return::of(&accept, &reject) {
                            Return::Nobody => {}
                            Return::Accepted => self.guard(condition, span, &mut to),
                            Return::Somebody => self.lanes = Lanes::Unknown,
                        }
                    }
                    let before = self.lanes;
                    let accept = self.block(accept, at_the_top && holds.is_some());
                    let after = std::mem::replace(&mut self.lanes, before);
                    let reject = self.block(reject, at_the_top && holds.is_some());
                    if holds == Some(true) {
                        self.lanes = after;
                    }
                    to.push(Statement::If { condition, accept, reject }, span);
                }
                Statement::Switch { selector, mut cases } => {
                    self.leave(at_the_top && cases.iter().any(|case| returns(&case.body)));
                    for case in &mut cases {
                        case.body = self.block(std::mem::take(&mut case.body), false);
                    }
                    to.push(Statement::Switch { selector, cases }, span);
                }
                Statement::Loop { body, continuing, break_if } => {
                    self.leave(at_the_top && (returns(&body) || returns(&continuing)));
                    let (body, continuing) = (self.block(body, false), self.block(continuing, false));
                    to.push(Statement::Loop { body, continuing, break_if }, span);
                }
                other => to.push(other, span),
            }
        }
        to
    }

    /// Below, some lanes may return, and who is not known.
    fn leave(&mut self, somebody: bool) {
        if somebody {
            self.lanes = Lanes::Unknown;
        }
    }

    fn append(&mut self, expression: Expression) -> Handle<Expression> {
        self.function.expressions.append(expression, Span::default())
    }

    /// Notes, before they return, whose partners do: those for which `condition` holds.
    fn guard(&mut self, condition: Handle<Expression>, span: Span, to: &mut Block) {
        let (Some(is_alone), false) = (self.twins.is_alone, matches!(self.lanes, Lanes::Unknown)) else {
            return;
        };
        let local = match self.lanes {
            Lanes::Left(local) => local,
            _ => {
                let ty = self.module.functions[is_alone].arguments[0].ty;
                let var = LocalVariable { name: Some("alone".to_owned()), ty, init: None };
                self.function.local_variables.append(var, Span::default())
            }
        };
        self.lanes = Lanes::Left(local);
        let pointer = self.append(Expression::LocalVariable(local));
        let now = self.append(Expression::CallResult(is_alone));
        let before = self.append(Expression::Load { pointer });
        let value =
            self.append(Expression::Binary { op: BinaryOperator::LogicalOr, left: before, right: now });
        let call = Statement::Call { function: is_alone, arguments: vec![condition], result: Some(now) };
        let emit = Statement::Emit(Range::new_from_bounds(before, value));
        to.push(call, span);
        to.push(emit, span);
        to.push(Statement::Store { pointer, value }, span);
    }

    fn store(
        &mut self,
        pointer: Handle<Expression>,
        value: Handle<Expression>,
        at_the_top: bool,
        span: Span,
        to: &mut Block,
    ) {
        let element = self.elements.get(&pointer).copied();
        // A store to what is declared read-only stays, for the validator to refuse.
        let Some((Element { twin, index }, store)) = element.and_then(|e| Some((e, e.twin.store?))) else {
            return to.push(Statement::Store { pointer, value }, span);
        };
        let (mut function, mut arguments) = (store, vec![index, value]);
        if let Some(by_halves) = twin.store_by_halves.filter(|_| at_the_top)
            && let Some(alone) = self.alone(span, to)
        {
            function = by_halves;
            arguments.push(alone);
        }
        to.push(Statement::Call { function, arguments, result: None }, span);
    }

    /// Whether a lane's partner has left, where that is known.
    fn alone(&mut self, span: Span, to: &mut Block) -> Option<Handle<Expression>> {
        match self.lanes {
            Lanes::All => Some(self.append(Expression::Literal(naga::Literal::Bool(false)))),
            Lanes::Left(local) => {
                let pointer = self.append(Expression::LocalVariable(local));
                let alone = self.append(Expression::Load { pointer });
                to.push(Statement::Emit(Range::new_from_bounds(alone, alone)), span);
                Some(alone)
            }
            Lanes::Unknown => None,
        }
    }

    /// Evaluates `range` with calls in the places of the loads.
    fn emit(&self, range: Range<Expression>, span: Span, to: &mut Block) {
        let mut run: Option<(Handle<Expression>, Handle<Expression>)> = None;
        let flush = |run: &mut Option<_>, to: &mut Block| {
            if let Some((first, last)) = run.take() {
                to.push(Statement::Emit(Range::new_from_bounds(first, last)), span);
            }
        };
        for handle in range {
            if let Some(element) = self.loads.get(&handle) {
                flush(&mut run, to);
                let (function, arguments) = (element.twin.load, vec![element.index]);
                to.push(Statement::Call { function, arguments, result: Some(handle) }, span);
            } else if self.elements.contains_key(&handle) {
                flush(&mut run, to);
            } else {
                run = Some((run.map_or(handle, |(first, _)| first), handle));
            }
        }
        flush(&mut run, to);
    }
}
