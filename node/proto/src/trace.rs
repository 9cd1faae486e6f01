//! Holds the golden traces to the contract they document: methods and fields exist, indexes and ids follow the rules.

use crate::contract::{messages, methods};

const GOLDEN: &str = include_str!("../trace/1-3-1.txt");
const REFUSALS: &str = include_str!("../trace/refusals.txt");
const NODE: &str = "balsa.node.v1.Node";

/// One call of a trace with the answer that ends it.
struct Call {
    method: &'static str,
    request: &'static str,
    answer: &'static str,
}

fn calls() -> Vec<Call> {
    calls_of(GOLDEN, &mut Vec::new())
}

/// The answered calls of a trace; the reasons of the refused ones go to `refusals`.
fn calls_of(trace: &'static str, refusals: &mut Vec<&'static str>) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut open: Option<(&str, &str)> = None;
    for line in trace.lines() {
        if let Some(call) = line.strip_prefix("-> ") {
            assert!(open.is_none(), "no answer before: {line}");
            open = Some(call.split_once(' ').expect("method, then request"));
        } else if let Some(answer) = line.strip_prefix("<- ") {
            let (method, request) = open.take().expect("an answer follows its call");
            calls.push(Call { method, request, answer });
        } else if let Some(reason) = line.strip_prefix("<! ") {
            let (method, request) = open.take().expect("a refusal follows its call");
            calls.push(Call { method, request, answer: "{}" });
            refusals.push(reason);
        } else {
            let known = ["#", "@ ", "! "].iter().any(|p| line.starts_with(p)) || line == "... until" || line.is_empty();
            assert!(known, "not a line of a trace: {line}");
        }
    }
    assert!(open.is_none(), "the last call has no answer");
    calls
}

/// The number after the first `key: ` of `text`, looking at whole keys only.
fn number(text: &str, key: &str) -> Option<u64> {
    let at = text.match_indices(key).find(|(i, _)| {
        let before = text[..*i].chars().next_back();
        matches!(before, Some('{' | ' ')) && text[i + key.len()..].starts_with(": ")
    })?;
    let rest = &text[at.0 + key.len() + 2..];
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
}

/// Checks `text`, one `{...}` of a trace, field by field against `message`; returns what follows it.
fn check<'a>(message: &str, text: &'a str) -> &'a str {
    let messages = messages();
    let mut rest = text.strip_prefix('{').expect("a message opens with a brace");
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return after;
        }
        let (name, value) = rest.split_once(": ").expect("field: value");
        let field = messages[message].field.iter().find(|f| f.name() == name);
        let field = field.unwrap_or_else(|| panic!("{message} has no field {name}"));
        let of = field.type_name().trim_start_matches('.');
        let nested = messages.contains_key(of);
        rest = match value.strip_prefix('[') {
            Some(list) if nested => {
                let mut list = list;
                while list.starts_with(['{', ' ', ',']) {
                    list = check(of, list.trim_start_matches([' ', ',']));
                }
                list.strip_prefix(']').expect("a list ends with a bracket")
            }
            Some(list) => list.split_once(']').expect("a list ends with a bracket").1,
            None if nested => check(of, value),
            None => &value[value.find([',', '}']).expect("a value ends")..],
        };
    }
}

#[test]
fn every_call_and_answer_of_the_trace_uses_methods_and_fields_of_the_contract() {
    let methods = methods(NODE);
    let mut reasons = Vec::new();
    for Call { method, request, answer } in calls().into_iter().chain(calls_of(REFUSALS, &mut reasons)) {
        let (input, output) = methods.get(method).unwrap_or_else(|| panic!("no method {method}"));
        assert_eq!(check(input, request), "", "{method} {request}");
        assert_eq!(check(output, answer), "", "{method} {answer}");
    }
    assert!(reasons.len() > 10, "{reasons:?}");
    for reason in reasons {
        assert!(crate::node::Reason::from_str_name(reason).is_some(), "the contract has no reason {reason}");
    }
}

#[test]
fn every_change_is_planned_on_the_index_seen_and_adds_one() {
    let mut index = 0;
    for Call { method, request, answer } in calls() {
        match method {
            "Bootstrap" => {
                assert_eq!(number(answer, "membership_index"), Some(1));
                index = 1;
            }
            "Add" | "Promote" | "Remove" => {
                assert_eq!(number(request, "membership_index"), Some(index), "{method} {request}");
                let membership = &answer[answer.find("membership: ").expect("a change answers the membership")..];
                index += 1;
                assert_eq!(number(membership, "index"), Some(index), "{method} {answer}");
            }
            "List" => assert_eq!(number(answer, "index"), Some(index), "{answer}"),
            "Join" => assert_eq!(number(request, "membership_index"), Some(index), "{request}"),
            _ => {}
        }
    }
    assert_eq!(index, 7, "1 -> 3 -> 1 is a foundation and six changes");
}

#[test]
fn raft_ids_are_given_in_order_and_never_twice() {
    let given: Vec<_> = calls().iter().filter(|c| c.method == "Add").map(|c| number(c.answer, "id")).collect();
    assert_eq!(given, [Some(2), Some(3)]);
    let gone: Vec<_> = calls().iter().filter(|c| c.method == "Remove").map(|c| number(c.request, "id")).collect();
    assert_eq!(gone, [Some(3), Some(2)]);
    let last = calls().iter().rfind(|c| c.method == "List").and_then(|c| number(c.answer, "next_id"));
    assert_eq!(last, Some(4));
}

#[test]
fn every_method_is_in_the_trace() {
    for method in ["State", "Bootstrap", "Add", "Join", "List", "Promote", "MoveLeader", "Remove", "PrepareStop"] {
        assert!(calls().iter().any(|c| c.method == method), "{method}");
    }
}
