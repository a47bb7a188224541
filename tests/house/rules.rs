//! The rules as data, and the checker that reads the tokens of a file: comments and strings do not
//! matter, and a path counts wherever it stands (`use`, expression, attribute, macro).

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// Top-level modules, and the modules that each may import besides itself. Downward only: no module
/// stands in the list of one that it lists.
pub const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "migrate", "engines", "runtime", "criu", "image", "logging", "sys", "error", "text",
        ],
    ),
    (
        "migrate",
        &[
            "engines", "runtime", "criu", "image", "sys", "error", "text",
        ],
    ),
    ("engines", &["runtime", "sys", "error", "text"]),
    ("runtime", &["criu", "image", "sys", "error", "text"]),
    ("criu", &["sys", "error", "text"]),
    ("image", &["sys", "error", "text"]),
    ("logging", &["sys"]),
    ("sys", &[]),
    ("error", &[]),
    ("text", &[]),
];

/// Floors of the migration, from the ground up. A module imports from lower floors, from itself,
/// and from nothing else of `migrate`.
pub const FLOORS: &[&[&str]] = &[
    &["fate", "limits", "wire"],
    &["agreement", "method", "trust"],
    &["progress", "record"],
    &["link", "unix_sockets"],
    &["preflight", "transfer"],
    &["destination", "source"],
    &["container"],
    &["ops"],
];

/// Crates that only some top-level modules may name.
const CONFINED: &[(&str, &[&str])] = &[
    ("clap", &["main", "cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("anyhow", &["main", "cli"]),
    ("libcontainer", &["runtime"]),
    ("libcgroups", &["runtime"]),
    ("protobuf", &["criu"]),
    ("rust_criu", &["criu"]),
];

/// Modules that are tested without root because they touch nothing outside the process.
const WITHOUT_IO: &[&[&str]] = &[&["migrate", "wire"], &["migrate", "agreement"]];

/// Paths that the modules of [`WITHOUT_IO`] may not name. The traits of `std::io` are fine.
const IO: &[&[&str]] = &[
    &["std", "env"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "os", "unix", "net"],
    &["std", "process"],
    &["std", "thread"],
    &["libc"],
    &["nix"],
    &["crate", "sys"],
];

/// Modules, and others that they must not import although the layers would allow it: the command
/// line knows the operations of a migration, but no lock, journal or CRIU.
const STRANGERS: &[(&[&str], &[&str])] = &[
    (&["cli", "live_migrate"], &["migrate", "record"]),
    (&["cli", "live_migrate"], &["criu"]),
];

/// The only module whose files may contain `unsafe`.
const UNSAFE_MODULE: &str = "sys";

/// Keywords after which a path may begin with `::`; they are no segment of it.
const BEFORE_PATHS: &[&str] = &[
    "as", "break", "const", "dyn", "else", "for", "if", "impl", "in", "match", "move", "mut",
    "pub", "return", "unsafe", "use", "where", "while",
];

/// Longest file, in lines.
pub const MOST_FILE_LINES: usize = 500;

/// Longest function, in lines from `fn` to its closing brace.
pub const MOST_FUNCTION_LINES: usize = 80;

/// Longer functions that may stay, by the name of the file and their own: tables and lists, which
/// are read from top to bottom and have no flow to follow.
const LONG_FUNCTIONS: &[(&str, &str)] = &[
    // One finding after the other.
    ("judge.rs", "judge_container"),
];

/// Functions, and files (without a function), that are still to be split. The list shall be empty.
const TO_BE_SPLIT: &[(&str, &str)] = &[
    ("send.rs", "send"),
    ("incoming.rs", "inspect"),
    ("resolve.rs", ""),
];

/// Is the function of a file (or the file itself, without a function) in a list of
/// [`LONG_FUNCTIONS`]' form?
fn lists(list: &[(&str, &str)], file: &str, function: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    list.contains(&(name, function))
}

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
struct FoundFunction {
    name: String,
    line: usize,
    lines: usize,
    in_tests: bool,
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
    functions: Vec<FoundFunction>,
    /// Lines with `unsafe`, or with an attribute that names `unsafe_code`.
    unsafe_lines: Vec<usize>,
    /// Those of them that begin a block or an `impl`, which need a `SAFETY` comment.
    unsafe_block_lines: Vec<usize>,
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

fn starts_with(path: &[String], prefix: &[&str]) -> bool {
    path.len() >= prefix.len()
        && path
            .iter()
            .zip(prefix)
            .all(|(segment, wanted)| segment == wanted)
}

/// Is the `unsafe` on `line` (from 1) documented? Its comment stands above the statement that
/// contains it.
fn has_safety_comment(text: &str, line: usize) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut above = lines[..line - 1].iter().rev().peekable();
    while let Some(candidate) = above.next() {
        if candidate.starts_with("//") {
            let rest = above.take_while(|candidate| candidate.starts_with("//"));
            return [candidate]
                .into_iter()
                .chain(rest)
                .any(|comment| comment.contains("SAFETY:"));
        }
        if candidate.is_empty() || candidate.ends_with([';', '{', '}']) {
            return false;
        }
    }
    false
}

/// Floor of a module of `migrate`, from 0.
fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

/// Does a file of `module` import from a floor that is not below its own?
fn climbs(module: &[String], segments: &[String]) -> bool {
    let ([migrate, from, ..], [root, other, to, ..]) = (module, segments) else {
        return false;
    };
    migrate == "migrate"
        && root == "crate"
        && other == "migrate"
        && from != to
        && matches!((floor(from), floor(to)), (Some(from), Some(to)) if to >= from)
}

/// Returns every breach of the rules in `file` (relative to `src/`), as `file:line: rule`.
pub fn breaches(file: &str, text: &str) -> Vec<String> {
    let module = module_of(file);
    let findings = Findings::of(file, text);

    let mut breaches = Vec::new();
    let mut breach =
        |line: usize, rule: String| breaches.push(format!("src/{file}:{line}: {rule}"));

    // The root of the library declares the modules and is bound by no layer.
    if let Some(top) = module.first() {
        if top == "migrate"
            && let Some(name) = module.get(1)
            && name != "tests"
            && floor(name).is_none()
        {
            breach(
                1,
                format!(
                    "the module migrate::{name} has no place in FLOORS of tests/house/rules.rs"
                ),
            );
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| name == top) else {
            return vec![format!(
                "src/{file}:1: the module {top} has no place in LAYERS of tests/house/rules.rs"
            )];
        };
        for FoundPath {
            segments,
            line,
            in_tests,
            ..
        } in &findings.paths
        {
            let imported = segments.get(1).filter(|_| segments[0] == "crate");
            if let Some(imported) =
                imported.filter(|name| LAYERS.iter().any(|(layer, _)| layer == name))
                && imported != top
                && !allowed.contains(&imported.as_str())
            {
                breach(
                    *line,
                    format!("{top} imports {imported}: imports run downward only"),
                );
            }
            if !in_tests && climbs(&module, segments) {
                breach(
                    *line,
                    format!(
                        "migrate::{} imports migrate::{}, which is not on a floor below",
                        module[1], segments[2]
                    ),
                );
            }
            for (name, users) in CONFINED {
                if segments[0] == *name && !users.contains(&top.as_str()) {
                    breach(
                        *line,
                        format!(
                            "{top} names {name}, which belongs to {}",
                            users.join(" and ")
                        ),
                    );
                }
            }
            if WITHOUT_IO.iter().any(|pure| starts_with(&module, pure))
                && IO.iter().any(|io| starts_with(segments, io))
            {
                breach(
                    *line,
                    format!("{} does I/O: {}", module.join("::"), segments.join("::")),
                );
            }
            for (from, to) in STRANGERS {
                if starts_with(&module, from)
                    && segments[0] == "crate"
                    && starts_with(&segments[1..], to)
                {
                    breach(
                        *line,
                        format!("{} imports {}", from.join("::"), to.join("::")),
                    );
                }
            }
        }
        if top != UNSAFE_MODULE {
            for line in &findings.unsafe_lines {
                breach(*line, format!("unsafe outside src/{UNSAFE_MODULE}"));
            }
        }
    }
    let lines = text.lines().count();
    if lines > MOST_FILE_LINES && !lists(TO_BE_SPLIT, file, "") {
        breach(
            lines,
            format!("the file has {lines} lines, more than {MOST_FILE_LINES}"),
        );
    }
    for function in &findings.functions {
        let is_listed = [LONG_FUNCTIONS, TO_BE_SPLIT]
            .iter()
            .any(|list| lists(list, file, &function.name));
        if function.lines > MOST_FUNCTION_LINES && !function.in_tests && !is_listed {
            breach(
                function.line,
                format!(
                    "the function {} has {} lines, more than {MOST_FUNCTION_LINES}",
                    function.name, function.lines
                ),
            );
        }
    }
    for line in &findings.unsafe_block_lines {
        if !has_safety_comment(text, *line) {
            breach(
                *line,
                String::from("unsafe without a SAFETY comment above it"),
            );
        }
    }
    breaches
}
