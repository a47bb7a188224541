//! Reading OCI specs.

pub mod lower;
pub mod namespaces;
pub(crate) mod normalize;
pub mod template;

use std::io::ErrorKind;
use std::path::Path;
use std::str::FromStr;

use oci_spec::runtime::{Capability, Process, Spec};
use serde_json::Value;

use super::error::{Error, Result};

/// Reads the spec at `path`. Capabilities that rcm does not know are dropped, so that a spec for a
/// newer kernel still runs.
///
/// # Errors
/// [`Error::NoConfig`], [`Error::File`], [`Error::InvalidConfig`].
pub fn load(path: &Path) -> Result<Spec> {
    parse(path, &read(path)?)
}

/// Reads the text of the spec at `path`.
///
/// # Errors
/// [`Error::NoConfig`], [`Error::File`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::NoConfig {
            path: path.to_path_buf(),
        },
        _ => Error::file("read", path)(source),
    })
}

/// Parses a spec that was read from `path`.
///
/// # Errors
/// [`Error::InvalidConfig`].
pub fn parse(path: &Path, text: &[u8]) -> Result<Spec> {
    let invalid = |source| Error::InvalidConfig {
        path: path.to_path_buf(),
        source,
    };
    let mut value: Value = serde_json::from_slice(text).map_err(invalid)?;
    if let Some(process) = value.get_mut("process") {
        drop_unknown_capabilities(process);
        normalize::adapt_process(process);
    }
    normalize::check_memory_policy(&value).map_err(invalid)?;
    serde_json::from_value(value).map_err(invalid)
}

/// Changes a spec's text so that the container joins the network namespace at `path`, instead of
/// its own or any other.
///
/// # Errors
/// [`Error::InvalidConfig`] if the text is no JSON; `spec_path` is the path that it was read from.
pub fn with_network(spec_path: &Path, text: &[u8], path: &Path) -> Result<Vec<u8>> {
    let invalid = |source| Error::InvalidConfig {
        path: spec_path.to_path_buf(),
        source,
    };
    let mut value: Value = serde_json::from_slice(text).map_err(invalid)?;
    enter_network(&mut value, path);
    serde_json::to_vec(&value).map_err(invalid)
}

/// Does the work of [`with_network`] on parsed JSON. A spec without a list of namespaces stays as
/// it is.
pub fn enter_network(spec: &mut Value, path: &Path) {
    let namespaces = spec
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut);
    if let Some(namespaces) = namespaces {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(serde_json::json!({"type": "network", "path": path}));
    }
}

/// Warns about the capabilities in a spec's text that [`parse`] drops, as runc does.
pub fn warn_of_unknown_capabilities(text: &[u8]) {
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else {
        return;
    };
    if let Some(process) = value.get_mut("process") {
        let unknown = drop_unknown_capabilities(process);
        if !unknown.is_empty() {
            tracing::warn!("ignoring unknown or unavailable capabilities: {unknown:?}");
        }
    }
}

/// Reads a `process.json`, the `process` object of a spec.
///
/// # Errors
/// [`Error::File`], [`Error::InvalidConfig`].
pub fn load_process(path: &Path) -> Result<Process> {
    let text = std::fs::read(path).map_err(Error::file("read", path))?;
    let invalid = |source| Error::InvalidConfig {
        path: path.to_path_buf(),
        source,
    };
    let mut value: Value = serde_json::from_slice(&text).map_err(invalid)?;
    drop_unknown_capabilities(&mut value);
    normalize::adapt_process(&mut value);
    serde_json::from_value(value).map_err(invalid)
}

/// Drops unknown capabilities, and returns their names.
fn drop_unknown_capabilities(process: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let Some(Value::Object(sets)) = process.get_mut("capabilities") else {
        return unknown;
    };
    for names in sets.values_mut().filter_map(Value::as_array_mut) {
        names.retain(|name| {
            let name = name.as_str().unwrap_or_default();
            let known = capability(name).is_some();
            if !known && !unknown.contains(&name.to_owned()) {
                unknown.push(name.to_owned());
            }
            known
        });
    }
    unknown
}

/// Returns the capability with this name, such as `CAP_KILL`; `None` if rcm does not know it.
#[must_use]
pub fn capability(name: &str) -> Option<Capability> {
    Capability::from_str(name.strip_prefix("CAP_")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_capabilities_are_dropped() {
        let text = br#"{"ociVersion":"1.2.0","process":{"cwd":"/","user":{"uid":0,"gid":0},
            "capabilities":{"bounding":["CAP_KILL","CAP_FROM_THE_FUTURE"]}}}"#;
        let spec = parse(Path::new("config.json"), text).unwrap();
        let process = spec.process().clone().unwrap();
        let bounding = process.capabilities().clone().unwrap().bounding().clone();
        assert_eq!(bounding.unwrap().len(), 1);
    }

    #[test]
    fn a_broken_spec_is_located() {
        let error = parse(Path::new("config.json"), b"{\"ociVersion\": 1,}").unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("line 1"), "{source}");
    }
}
