//! Reads the tokens of a source file: its paths, functions and `unsafe` blocks. Comments and
//! strings do not matter, and a path counts wherever it stands (`use`, expression, attribute,
//! macro).

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// Keywords after which a path may begin with `::`; they are no segment of it.
const BEFORE_PATHS: &[&str] = &[
    "as", "break", "const", "dyn", "else", "for", "if", "impl", "in", "match", "move", "mut",
    "pub", "return", "unsafe", "use", "where", "while",
];

/// A path of a file, made absolute: it starts with `crate` or with the name of another crate.
#[derive(Debug)]
pub struct FoundPath {
    pub segments: Vec<String>,
    pub line: usize,
    /// Module of the code that has the path.
    pub module: Vec<String>,
    /// The name that a `use` gives to it here; `*` for all names of a module.
    pub imported_as: Option<String>,
    /// Whether the path is in a module of tests.
    pub in_tests: bool,
}

/// A function with a body.
#[derive(Debug)]
pub struct FoundFunction {
    pub name: String,
    pub line: usize,
    pub lines: usize,
    pub in_tests: bool,
}

/// Module that the tokens belong to.
#[derive(Debug, Clone)]
struct Scope {
    /// Names below the crate.
    module: Vec<String>,
    in_tests: bool,
}

/// Contents of a file that the rules are about.
#[derive(Debug, Default)]
pub struct Findings {
    pub paths: Vec<FoundPath>,
    pub functions: Vec<FoundFunction>,
    /// Lines with `unsafe`, or with an attribute that names `unsafe_code`.
    pub unsafe_lines: Vec<usize>,
    /// Those of them that begin a block or an `impl`, which need a `SAFETY` comment.
    pub unsafe_block_lines: Vec<usize>,
}

impl Findings {
    /// Reads a file (relative to `src/`).
    pub fn of(file: &str, text: &str) -> Self {
        let tokens = text
            .parse()
            .unwrap_or_else(|error| panic!("{file} is not Rust: {error}"));
        let module = module_of(file);
        let in_tests = module.iter().any(|name| name == "tests");
        let mut findings = Self::default();
        findings.collect(tokens, &Scope { module, in_tests });
        findings
    }

    /// Collects from `tokens`, the code of `scope`.
    fn collect(&mut self, tokens: TokenStream, scope: &Scope) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => {
                    self.collect(group.stream(), scope);
                    at += 1;
                }
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    let name = ident.to_string();
                    if name == "unsafe" || name == "unsafe_code" {
                        self.unsafe_lines.push(line);
                        if name == "unsafe" && begins_unsafe_block(tokens.get(at + 1)) {
                            self.unsafe_block_lines.push(line);
                        }
                    }
                    if let Some((inner, body)) = inline_module(&tokens[at..]) {
                        let mut inside = scope.clone();
                        inside.module.push(inner);
                        inside.in_tests |= ends_with_cfg_test(&tokens[..at]);
                        self.collect(body.stream(), &inside);
                        at += 3;
                        continue;
                    }
                    if name == "fn" {
                        self.functions
                            .extend(function(&tokens[at..], scope.in_tests));
                    }
                    if BEFORE_PATHS.contains(&name.as_str()) {
                        at += 1;
                        continue;
                    }
                    let in_use = begins_use(&tokens[..at]);
                    at += self.path(&tokens[at..], Vec::new(), scope, in_use);
                }
                _ => at += 1,
            }
        }
    }

    /// Reads the path that begins at `tokens[0]`, an identifier, below `prefix`. Returns how many
    /// tokens it has.
    fn path(
        &mut self,
        tokens: &[TokenTree],
        prefix: Vec<String>,
        scope: &Scope,
        in_use: bool,
    ) -> usize {
        let mut segments = prefix;
        let mut at = 0;
        let line = tokens[0].span().start().line;
        while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
            segments.push(ident.to_string());
            at += 1;
            if !is_path_separator(&tokens[at..]) {
                break;
            }
            match tokens.get(at + 2) {
                Some(TokenTree::Ident(_)) => at += 2,
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.use_group(group, &segments, scope);
                    return at + 3;
                }
                Some(TokenTree::Punct(star)) if in_use && star.as_char() == '*' => {
                    self.paths
                        .push(scope.path(segments, line, Some("*".into())));
                    return at + 3;
                }
                _ => break,
            }
        }
        // A single identifier is a path to a crate or module only in a `use`.
        if segments.len() > 1 || in_use {
            let imported_as = in_use.then(|| imported_name(&segments, &tokens[at..]));
            self.paths.push(scope.path(segments, line, imported_as));
        }
        at
    }

    /// Reads the branches of `prefix::{...}`.
    fn use_group(&mut self, group: &Group, prefix: &[String], scope: &Scope) {
        let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
        for branch in
            tokens.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ','))
        {
            match branch.first() {
                Some(TokenTree::Ident(_)) => {
                    self.path(branch, prefix.to_vec(), scope, true);
                }
                Some(star) => self.paths.push(scope.path(
                    prefix.to_vec(),
                    star.span().start().line,
                    Some("*".into()),
                )),
                None => {}
            }
        }
    }
}

impl Scope {
    fn path(&self, segments: Vec<String>, line: usize, imported_as: Option<String>) -> FoundPath {
        FoundPath {
            segments: absolute(segments, &self.module),
            line,
            module: self.module.clone(),
            imported_as,
            in_tests: self.in_tests,
        }
    }
}

/// The name that a `use` of the path `segments` binds; `rest` are the tokens after the path.
fn imported_name(segments: &[String], rest: &[TokenTree]) -> String {
    if let [TokenTree::Ident(keyword), TokenTree::Ident(name), ..] = rest
        && keyword == "as"
    {
        return name.to_string();
    }
    let mut names = segments.iter().rev().filter(|segment| *segment != "self");
    names.next().cloned().unwrap_or_default()
}

/// Is the last attribute before an item `#[cfg(test)]`?
fn ends_with_cfg_test(before: &[TokenTree]) -> bool {
    let Some(TokenTree::Group(attribute)) = before.last() else {
        return false;
    };
    let text = attribute.stream().to_string().replace(' ', "");
    attribute.delimiter() == Delimiter::Bracket && text == "cfg(test)"
}

/// Returns the function that begins with the `fn` at the head of `tokens`; `None` without a body.
fn function(tokens: &[TokenTree], in_tests: bool) -> Option<FoundFunction> {
    let TokenTree::Ident(name) = tokens.get(1)? else {
        return None;
    };
    let body = tokens.iter().find_map(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(Ok(group)),
        TokenTree::Punct(end) if end.as_char() == ';' => Some(Err(())),
        _ => None,
    })?;
    let line = tokens[0].span().start().line;
    let last = body.ok()?.span_close().end().line;
    Some(FoundFunction {
        name: name.to_string(),
        line,
        lines: last - line + 1,
        in_tests,
    })
}

fn is_path_separator(tokens: &[TokenTree]) -> bool {
    let colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == ':');
    colon(tokens.first()) && colon(tokens.get(1))
}

/// Does a path after `before` stand in a `use`?
fn begins_use(before: &[TokenTree]) -> bool {
    let before = match before {
        [rest @ .., _, _] if is_path_separator(&before[rest.len()..]) => rest,
        other => other,
    };
    matches!(before.last(), Some(TokenTree::Ident(ident)) if ident == "use")
}

/// Does `unsafe` followed by `next` begin a block or an `impl`?
fn begins_unsafe_block(next: Option<&TokenTree>) -> bool {
    match next {
        Some(TokenTree::Group(group)) => group.delimiter() == Delimiter::Brace,
        Some(TokenTree::Ident(ident)) => ident == "impl",
        _ => false,
    }
}

/// The name and body of `mod name { ... }` at the head of `tokens`.
fn inline_module(tokens: &[TokenTree]) -> Option<(String, &Group)> {
    match tokens {
        [
            TokenTree::Ident(keyword),
            TokenTree::Ident(name),
            TokenTree::Group(body),
            ..,
        ] if keyword == "mod" => Some((name.to_string(), body)),
        _ => None,
    }
}

/// Resolves `self`, `super` and the library's name, as seen from `module`.
fn absolute(segments: Vec<String>, module: &[String]) -> Vec<String> {
    let mut base = module.to_vec();
    let mut rest = segments.as_slice();
    match rest.first().map(String::as_str) {
        Some("crate" | "rcm") => {
            return [String::from("crate")]
                .into_iter()
                .chain(rest[1..].iter().cloned())
                .collect();
        }
        Some("self") => rest = &rest[1..],
        Some("super") => {
            while rest.first().is_some_and(|segment| segment == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        _ => return segments,
    }
    [String::from("crate")]
        .into_iter()
        .chain(base)
        .chain(rest.iter().cloned())
        .collect()
}

/// The module that a file under `src/` holds: `migrate/wire.rs` is `["migrate", "wire"]`.
pub fn module_of(file: &str) -> Vec<String> {
    let mut module: Vec<String> = file
        .trim_end_matches(".rs")
        .split('/')
        .map(String::from)
        .collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
        module.pop();
    }
    module
}
