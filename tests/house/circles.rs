//! Circles of imports: files that cannot be read, or moved, one without the other.
//!
//! Every path of a file is an arrow to the file that owns the item; re-exports are followed to it.
//! Code of tests draws no arrows. Files that reach each other are a circle, unless one of them is
//! the parent module of all the others: a parent and its children may use each other, but without
//! the arrows to the parent the children must have no circle, either.

use std::collections::{BTreeMap, BTreeSet};

use crate::tokens::{Findings, FoundPath, module_of};

/// Files of a source tree, by path relative to `src/`, with their text.
pub type Tree = BTreeMap<String, String>;

/// Folders or files with known circles, which are only printed. The list shall stay empty.
pub const EXCEPTIONS: &[&str] = &[];

type Module = Vec<String>;
/// The arrows of each file, with the place and the path of the first one to each target.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

/// Files that import each other.
#[derive(Debug, PartialEq, Eq)]
pub struct Circle {
    pub files: BTreeSet<String>,
    /// The arrows within the circle: `src/a.rs:1: crate::b::X (src/b.rs)`.
    pub arrows: Vec<String>,
}

impl Circle {
    /// Returns whether all of the files are in [`EXCEPTIONS`].
    pub fn is_known(&self) -> bool {
        self.files
            .iter()
            .all(|file| EXCEPTIONS.iter().any(|known| file.starts_with(known)))
    }
}

/// Finds the circles of a source tree.
pub fn circles(tree: &Tree) -> Vec<Circle> {
    let graph = arrows(tree);
    let files = graph.keys().cloned().collect();
    within(&graph, &files)
}

/// The circles among some of the files.
fn within(graph: &Graph, files: &BTreeSet<String>) -> Vec<Circle> {
    let mut found = Vec::new();
    for members in knots(graph, files) {
        match members.iter().find(|file| is_parent_of_all(file, &members)) {
            Some(parent) => {
                // Leaves out the arrows to the parent, with the parent itself: every circle through
                // it needs one.
                let mut children = members.clone();
                children.remove(parent);
                found.extend(within(graph, &children));
            }
            None => found.push(Circle {
                arrows: members
                    .iter()
                    .flat_map(|file| &graph[file])
                    .filter(|(target, _)| members.contains(*target))
                    .map(|(target, place)| format!("{place} (src/{target})"))
                    .collect(),
                files: members,
            }),
        }
    }
    found
}

fn is_parent_of_all(file: &str, members: &BTreeSet<String>) -> bool {
    let parent = module_of(file);
    members
        .iter()
        .all(|member| module_of(member).starts_with(&parent))
}

/// The strongly connected components with more than one member: files that reach each other.
fn knots(graph: &Graph, files: &BTreeSet<String>) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = files
        .iter()
        .map(|file| (file, reachable(graph, files, file)))
        .collect();
    let mut knots: Vec<BTreeSet<String>> = Vec::new();
    for file in files {
        if knots.iter().any(|knot| knot.contains(file)) {
            continue;
        }
        let knot: BTreeSet<String> = reached[file]
            .iter()
            .filter(|other| reached[**other].contains(file))
            .map(|other| (*other).clone())
            .collect();
        if knot.len() > 1 {
            knots.push(knot);
        }
    }
    knots
}

/// The files that can be reached from `start`; `start` itself only over others.
fn reachable<'a>(
    graph: &'a Graph,
    files: &'a BTreeSet<String>,
    start: &String,
) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut ahead: Vec<&String> = graph[start].keys().collect();
    while let Some(file) = ahead.pop() {
        if let Some(file) = files.get(file)
            && reached.insert(file)
        {
            ahead.extend(graph[file].keys());
        }
    }
    reached
}

/// The modules of a tree and the names that they import.
struct Modules {
    owners: BTreeMap<Module, String>,
    imports: BTreeMap<Module, BTreeMap<String, Module>>,
}

fn arrows(tree: &Tree) -> Graph {
    let findings: BTreeMap<&String, Vec<FoundPath>> = tree
        .iter()
        // The program is above everything, and nothing can import it.
        .filter(|(file, _)| *file != "main.rs")
        .map(|(file, text)| {
            let mut paths = Findings::of(file, text).paths;
            paths.retain(|path| !path.in_tests);
            (file, paths)
        })
        .collect();
    let owners = findings
        .keys()
        .map(|file| (module_of(file), (*file).clone()))
        .collect();
    let mut modules = Modules {
        owners,
        imports: BTreeMap::new(),
    };
    for path in findings.values().flatten() {
        if let (Some(name), Some(target)) = (&path.imported_as, modules.absolute(path)) {
            let imports = modules.imports.entry(path.module.clone()).or_default();
            imports.insert(name.clone(), target);
        }
    }
    let mut graph = Graph::new();
    for (file, paths) in findings {
        let targets = graph.entry(file.clone()).or_default();
        for path in paths {
            let Some(target) = modules.absolute(&path) else {
                continue;
            };
            let owner = modules.owner(&target, &mut BTreeSet::new());
            if let Some(owner) = owner.filter(|owner| *owner != file) {
                let place = format!("src/{file}:{}: crate::{}", path.line, target.join("::"));
                targets.entry(owner.clone()).or_insert(place);
            }
        }
    }
    graph
}

impl Modules {
    /// The names of a path below the crate; `None` for a path of another crate.
    fn absolute(&self, path: &FoundPath) -> Option<Module> {
        let mut names: Module = path.segments.clone();
        names.retain(|name| name != "self");
        let first = names.first()?.clone();
        if first == "crate" {
            names.remove(0);
            return Some(names);
        }
        let mut child = path.module.clone();
        child.push(first.clone());
        if self.owners.contains_key(&child) {
            child.extend(names.drain(1..));
            return Some(child);
        }
        let imported = self.imports.get(&path.module)?.get(&first)?;
        Some(imported.iter().cloned().chain(names.drain(1..)).collect())
    }

    /// The file that owns the item of an absolute path; `seen` are the re-exports on the way.
    fn owner(&self, path: &[String], seen: &mut BTreeSet<Module>) -> Option<&String> {
        let depth = (0..=path.len())
            .rev()
            .find(|depth| self.owners.contains_key(&path[..*depth]))?;
        let (module, rest) = path.split_at(depth);
        let re_exported = rest
            .first()
            .and_then(|name| self.imports.get(module)?.get(name));
        if let Some(re_exported) = re_exported
            && seen.insert(path.to_vec())
        {
            let target: Module = re_exported.iter().chain(&rest[1..]).cloned().collect();
            return self.owner(&target, seen);
        }
        self.owners.get(module)
    }
}
