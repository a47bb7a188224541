//! The messages of rcm's own errors, from its sources: the attributes of `thiserror`.

use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use walkdir::WalkDir;

/// Returns the sentences of all errors below `dir`, with words in capitals for the values.
pub fn of_tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in WalkDir::new(dir).sort_by_file_name() {
        let entry = entry.expect("src can be walked");
        if entry.path().extension().is_some_and(|name| name == "rs") {
            let text = fs::read_to_string(entry.path()).expect("a source file can be read");
            found.extend(of_source(&text));
        }
    }
    found
}

pub fn of_source(text: &str) -> Vec<String> {
    let tokens: TokenStream = text.parse().expect("Rust");
    let mut found = Vec::new();
    collect(tokens, false, &mut found);
    found
}

fn collect(tokens: TokenStream, in_brackets: bool, found: &mut Vec<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else {
            continue;
        };
        // #[error("...")]: the arguments follow the name.
        let is_error = in_brackets
            && matches!(token_before(&tokens, at), Some(TokenTree::Ident(name)) if name == "error");
        match group.stream().into_iter().next() {
            Some(TokenTree::Literal(literal)) if is_error => {
                let sentence = sentence(&literal.to_string());
                // An error that only passes another one on, or a constant with its own test.
                if sentence.chars().any(|char| char.is_lowercase()) {
                    found.push(sentence);
                }
            }
            _ => collect(
                group.stream(),
                group.delimiter() == Delimiter::Bracket,
                found,
            ),
        }
    }
}

fn token_before(tokens: &[TokenTree], at: usize) -> Option<&TokenTree> {
    tokens.get(at.checked_sub(1)?)
}

/// `"cannot read {path:?}"` as `cannot read PATH`.
fn sentence(literal: &str) -> String {
    let mut plain = String::new();
    let mut rest = literal.trim_matches('"').chars().peekable();
    while let Some(char) = rest.next() {
        match char {
            '\\' if rest.peek() == Some(&'\n') => {
                while rest.next_if(|char| char.is_whitespace()).is_some() {}
            }
            '\\' => plain.extend(rest.next()),
            '{' => {
                let inside: String = rest.by_ref().take_while(|char| *char != '}').collect();
                let name = inside.split(':').next().unwrap_or_default();
                match name.starts_with(|char: char| char.is_alphabetic()) {
                    true => plain.push_str(&name.to_uppercase()),
                    false => plain.push_str("..."),
                }
            }
            char => plain.push(char),
        }
    }
    plain
}

/// The first strings of the pairs in the constant `name` of `text`.
pub fn first_of_pairs(text: &str, name: &str) -> Vec<String> {
    let start = text.find(&format!("const {name}")).expect("the constant");
    let end = start + text[start..].find("];").expect("its end");
    text[start..end]
        .split("(\n")
        .skip(1)
        .map(|pair| {
            let first = pair.trim_start().lines().next().unwrap_or_default();
            sentence(first.trim_end_matches(','))
        })
        .collect()
}
