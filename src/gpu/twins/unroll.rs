//! Loops of a constant number of rounds, written out.
//!
//! Registers are arrays in a shader, and only where each element is named by a constant does a compiler keep them in
//! registers. How many rounds of a loop it writes out for that is its own affair: lavapipe 22.3 does it for all tiles,
//! lavapipe 25.0 not for those of 32 rows, which take five times as long there.

use std::collections::HashMap;

/// No more rounds than the lanes of a subgroup are written out.
const MOST: u32 = 32;
const FOR: &str = "for (var ";

/// The same shader with each `for (var i = 0u; i < N; i++)` as its rounds one after the other, where `N` is a number, a
/// `const` that stands for one, or one divided by another, and nothing in the loop leaves it early.
pub(super) fn unrolled(source: &str) -> String {
    let code: String = source
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code).to_owned() + "\n")
        .collect();
    let constants = code.lines().filter_map(constant).collect();
    written_out(&code, &constants)
}

/// Name and value of `const NAME: u32 = 8u;`.
fn constant(line: &str) -> Option<(&str, u32)> {
    let (name, value) = line.trim_end().strip_prefix("const ")?.split_once(": u32 = ")?;
    Some((name, number(value.strip_suffix(';')?)?))
}

fn number(text: &str) -> Option<u32> {
    text.strip_suffix('u')?.parse().ok()
}

fn written_out(code: &str, constants: &HashMap<&str, u32>) -> String {
    let Some((before, head, body, after)) = first_loop(code) else { return code.to_owned() };
    let mut text = before.to_owned();
    let body = written_out(body, constants);
    match rounds(head, constants).filter(|_| !words(&body).any(|w| w == "break" || w == "continue")) {
        Some((name, rounds)) => {
            for round in 0..rounds {
                text += &format!("{{{}}}", with(&body, name, &format!("{round}u")));
            }
        }
        None => text += &format!("{FOR}{head}{{{body}}}"),
    }
    text + &written_out(after, constants)
}

/// What stands before the first `for`, between its name and its brace, between its braces, and after it.
fn first_loop(code: &str) -> Option<(&str, &str, &str, &str)> {
    let (before, rest) = code.split_once(FOR)?;
    let (head, rest) = rest.split_once('{')?;
    let mut depth = 1;
    let end = rest.find(|c| {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        depth == 0
    })?;
    Some((before, head, &rest[..end], &rest[end + 1..]))
}

/// The variable and the rounds of a loop with the head `i = 0u; i < N; i++) `.
fn rounds<'a>(head: &'a str, constants: &HashMap<&str, u32>) -> Option<(&'a str, u32)> {
    let (name, rest) = head.split_once(" = 0u; ")?;
    let end = rest.strip_prefix(name)?.strip_prefix(" < ")?.strip_suffix(&format!("; {name}++) "))?;
    let value = |text: &str| number(text).or_else(|| constants.get(text).copied());
    let rounds = match end.split_once(" / ") {
        Some((whole, part)) => value(whole)?.checked_div(value(part)?)?,
        None => value(end)?,
    };
    (rounds <= MOST).then_some((name, rounds))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '.'
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c| !is_word(c))
}

/// `code` with `value` wherever the variable `name` stands: a member of that name follows a dot.
fn with(code: &str, name: &str, value: &str) -> String {
    let mut text = String::with_capacity(code.len());
    let mut rest = code;
    while !rest.is_empty() {
        let (word, next) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
        let (member, of) = word.split_once('.').map_or((word, ""), |(v, _)| (v, &word[v.len()..]));
        text += if member == name { value } else { member };
        text += of;
        let gap = next.find(is_word).unwrap_or(next.len());
        text += &next[..gap];
        rest = &next[gap..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `code` with single spaces.
    fn spaced(code: &str) -> String {
        code.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn loops_of_constant_rounds_are_written_out_from_the_inside() {
        let source = "
const ROWS: u32 = 2u; // { a brace in a comment
fn main() {
    for (var i = 0u; i < ROWS; i++) { // and another {
        x[i] += i.x + v.i + vi + 1.0;
        for (var j = 0u; j < 3u; j++) { y[i][j] = i * j; }
    }
    for (var q = 0u; q < ROWS / 2u; q++) { z[q] = 0; }
    done();
}";
        let row = |i: u32| {
            let inner: String = (0..3).map(|j| format!("{{ y[{i}u][{j}u] = {i}u * {j}u; }}")).collect();
            format!("{{ x[{i}u] += {i}u.x + v.i + vi + 1.0; {inner} }}")
        };
        let expected =
            format!("const ROWS: u32 = 2u; fn main() {{ {}{} {{ z[0u] = 0; }} done(); }}", row(0), row(1));
        assert_eq!(spaced(&unrolled(source)), expected);
    }

    #[test]
    fn other_loops_stay() {
        for (head, body) in [
            ("var i = 0u; i < n; i++", "x += i;"),
            ("var i = 0u; i < 33u; i++", "x += i;"),
            ("var i = 1u; i < 4u; i++", "x += i;"),
            ("var i = 0u; i < 4u; i += 2u", "x += i;"),
            ("var i = 0u; i <= 4u; i++", "x += i;"),
            ("var i = 0u; i < n / 4u; i++", "x += i;"),
            ("var i = 0u; i < 4u / 0u; i++", "x += i;"),
            ("var i = 0u; i < 4u; i++", "if x > i { break; }"),
            ("var i = 0u; i < 4u; i++", "if x > i { continue; } x += i;"),
        ] {
            let source = format!("fn main() {{ for ({head}) {{ {body} }} }}\n");
            assert_eq!(unrolled(&source), source);
            // What stands in one that stays is looked at all the same, and what comes after it.
            let two = "for (var k = 0u; k < 2u; k++) { z[k] = 1; }";
            let source = format!("fn main() {{ for ({head}) {{ {body} {two} }} {two} }}");
            let out = "{ z[0u] = 1; }{ z[1u] = 1; }";
            let expected = format!("fn main() {{ for ({head}) {{ {body} {out} }} {out} }}");
            assert_eq!(spaced(&unrolled(&source)), expected);
        }
    }
}
