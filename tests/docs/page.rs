//! A page of the documentation: its fenced blocks, and the targets of its links.

use std::fs;
use std::path::{Path, PathBuf};

/// Kinds of blocks, by their information string.
pub const SHELL: &str = "sh";
pub const DEVELOPING: &str = "sh make";
/// Before the reason why no test runs it.
const ELSEWHERE: &str = "sh elsewhere: ";
const REAL_HOSTS: &str = "sh real-hosts ";
/// The scenario of the lab that runs them unless the block names another.
const SCENARIO: &str = "docs";
/// A block that is not to be typed.
const OTHERS: [&str; 9] = [
    "text",
    "console",
    "mermaid",
    "json",
    "toml",
    "ini",
    "yaml",
    "dockerfile",
    "caddyfile",
];

#[derive(Debug)]
pub struct Block {
    pub kind: String,
    pub text: String,
    pub line: usize,
}

impl Block {
    /// The scenario of the lab that runs it on one of two hosts.
    pub fn scenario(&self) -> Option<&str> {
        let mut words = self.kind.strip_prefix(REAL_HOSTS)?.split(' ');
        words
            .next()
            .filter(|host| ["source", "destination"].contains(host))?;
        Some(words.next().unwrap_or(SCENARIO))
    }

    fn is_known(&self) -> bool {
        [SHELL, DEVELOPING].contains(&self.kind.as_str())
            || OTHERS.contains(&self.kind.as_str())
            || self.is_for_hosts()
    }

    /// Commands that need hosts of their own.
    pub fn is_for_hosts(&self) -> bool {
        let reason = self.kind.strip_prefix(ELSEWHERE);
        self.scenario().is_some() || reason.is_some_and(|reason| !reason.is_empty())
    }
}

#[derive(Debug)]
pub struct Page {
    pub path: PathBuf,
    text: String,
    pub blocks: Vec<Block>,
    /// Mistakes in the form of the page.
    pub faults: Vec<String>,
}

impl Page {
    pub fn read(path: &Path) -> Self {
        let text =
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::parse(path, &text)
    }

    pub fn parse(path: &Path, text: &str) -> Self {
        let mut page = Self {
            path: path.to_owned(),
            text: text.to_owned(),
            blocks: Vec::new(),
            faults: Vec::new(),
        };
        let mut open: Option<Block> = None;
        let mut after_blank = true;
        for (line, text) in (1..).zip(text.lines()) {
            let fence = text.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (None, Some(kind)) => {
                    let block = Block {
                        kind: kind.trim().to_owned(),
                        text: String::new(),
                        line,
                    };
                    if !block.is_known() {
                        page.faults.push(format!(
                            "{}:{line}: a block of kind {:?}",
                            path.display(),
                            block.kind
                        ));
                    }
                    open = Some(block);
                }
                (Some(_), Some("")) => page.blocks.extend(open.take()),
                (Some(block), _) => {
                    block.text.push_str(text);
                    block.text.push('\n');
                }
                (None, None) if after_blank && text.starts_with("    ") => {
                    page.faults.push(format!(
                        "{}:{line}: an indented block, which has no information string",
                        path.display()
                    ))
                }
                (None, None) => {}
            }
            after_blank = text.trim().is_empty();
        }
        if let Some(block) = open {
            page.faults.push(format!(
                "{}:{}: a block without end",
                path.display(),
                block.line
            ));
        }
        page
    }

    pub fn blocks(&self, kind: &str) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter(move |block| block.kind == kind)
    }

    /// The page without its blocks.
    fn prose(&self) -> String {
        let mut inside = false;
        let mut prose = String::new();
        for line in self.text.lines() {
            let is_fence = line.trim_start().starts_with("```");
            inside ^= is_fence;
            if !inside && !is_fence {
                prose.push_str(line);
                prose.push('\n');
            }
        }
        prose
    }

    /// The flags in its text between backquotes.
    pub fn named_flags(&self) -> Vec<String> {
        let prose = self.prose();
        let code = prose.split('`').skip(1).step_by(2);
        code.flat_map(flags).map(str::to_owned).collect()
    }

    /// Links to files of the tree that do not exist, and to headings that no page has.
    pub fn dead_links(&self) -> Vec<String> {
        let prose = self.prose();
        let mut dead = Vec::new();
        for link in prose.split("](").skip(1) {
            let Some((target, _)) = link.split_once(')') else {
                continue;
            };
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = self.path.parent().expect("a directory").join(file);
            let is_alive = match (file, heading) {
                ("", heading) => self.headings().contains(&heading.to_owned()),
                (_, "") => path.exists(),
                (_, heading) => {
                    path.exists() && Self::read(&path).headings().contains(&heading.to_owned())
                }
            };
            if !is_alive {
                dead.push(format!("{}: {target}", self.path.display()));
            }
        }
        dead
    }

    /// The anchors of its headings, as the usual renderers make them.
    fn headings(&self) -> Vec<String> {
        self.prose()
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| {
                line.trim_start_matches('#')
                    .trim()
                    .to_lowercase()
                    .chars()
                    .filter(|char| char.is_alphanumeric() || " -_".contains(*char))
                    .map(|char| if char == ' ' { '-' } else { char })
                    .collect()
            })
            .collect()
    }
}

/// Words such as `--json`.
pub fn flags(text: &str) -> impl Iterator<Item = &str> {
    text.split(|char: char| !(char.is_ascii_alphanumeric() || char == '-'))
        .filter(|word| {
            word.strip_prefix("--")
                .is_some_and(|name| name.starts_with(|char: char| char.is_ascii_lowercase()))
        })
}
