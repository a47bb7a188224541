//! Changing the limits of a container that executes.
//!
//! rcm writes the control files itself. The manager of `libcgroups` would apply all of
//! `linux.resources` again, device rules included. It writes period and quota in an order that the
//! kernel may refuse. And it could not roll back a change that failed halfway.

use libcgroups::common::{CgroupManager, ControllerOpt, create_cgroup_manager};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::error::chain;
use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::resctrl::{self, Group};
use crate::runtime::process::libcontainer;
use crate::runtime::spec::{self, lower};
use crate::runtime::status::Status;
use control::ControlFiles;

mod control;
mod error;
mod resources;
mod v1;
mod v2;

pub use error::UpdateError;
pub use resources::{BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice, WeightDevice};

/// Input of `update`.
#[derive(Debug, Default, Clone)]
pub struct Request {
    /// Limits of the cgroup.
    pub resources: Resources,
    /// Intel RDT's cache schema, such as `L3:0=f`.
    pub l3_cache_schema: Option<String>,
    /// Intel RDT's memory bandwidth schema, such as `MB:0=20`.
    pub mem_bw_schema: Option<String>,
}

/// Changes the limits, and stores them in the container's spec. It changes all or none.
///
/// # Errors
/// [`Error::NotRunning`], [`Error::Update`].
pub fn update(container: &Container, request: Request) -> Result<()> {
    if container.status() == Status::Stopped {
        return Err(Error::NotRunning);
    }
    if request.resources.memory.kernel.is_some() || request.resources.memory.kernel_tcp.is_some() {
        tracing::warn!("Kernel memory settings are ignored and will be removed");
    }
    let request = Request {
        resources: request.resources.normalized(),
        ..request
    };
    let path = container.spec_path();
    let invalid = |source| Error::InvalidConfig {
        path: path.clone(),
        source,
    };
    let mut config = read_config(container)?;
    let stored: Resources = match config.pointer("/linux/resources") {
        Some(resources) => serde_json::from_value(resources.clone()).map_err(invalid)?,
        None => Resources::default(),
    };
    enter(&mut config, &request).map_err(invalid)?;

    let mut files = ControlFiles::default();
    let changed = apply(container, &request, &stored, &config, &mut files).and_then(|()| {
        let text = serde_json::to_vec(&config).map_err(invalid)?;
        crate::sys::file::replace_atomic(&path, &text, 0o600).map_err(Error::file("write", &path))
    });
    if changed.is_err() {
        files.roll_back();
    }
    changed
}

/// Sets the limits of the container's spec that this module can set, in the groups that the
/// container has. A failure leaves some of them set.
///
/// # Errors
/// [`Error::Update`].
pub(crate) fn set_limits(container: &Container) -> Result<()> {
    let config = read_config(container)?;
    if config["linux"]["resources"].is_null() {
        return Ok(());
    }
    let limits = on_record(container, &config)?;
    apply_limits(
        container,
        &limits,
        &Resources::default(),
        &mut ControlFiles::default(),
    )
}

/// Writes the weights of single devices, which libcontainer ignores.
///
/// # Errors
/// Those of [`update`].
pub(crate) fn set_device_weights(container: &Container) -> Result<()> {
    let recorded = on_record(container, &read_config(container)?)?;
    let mut limits = Request::default();
    limits.resources.block_io.weight_device = recorded.resources.block_io.weight_device;
    apply_limits(
        container,
        &limits,
        &Resources::default(),
        &mut ControlFiles::default(),
    )
}

/// Returns the name of the first limit in the container's spec, as a member of `linux.resources`.
/// Device rules do not count.
///
/// # Errors
/// If the spec cannot be read.
pub(crate) fn first_limit(container: &Container) -> Result<Option<String>> {
    /// Returns whether the value is a limit: zero and empty values are none.
    fn is_limit(value: &Value) -> bool {
        match value {
            Value::Null => false,
            Value::Bool(value) => *value,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(values) => values.iter().any(is_limit),
            Value::Object(members) => members.values().any(is_limit),
        }
    }
    let config = read_config(container)?;
    let members = config["linux"]["resources"].as_object();
    Ok(members
        .into_iter()
        .flatten()
        .find(|(name, value)| *name != "devices" && is_limit(value))
        .map(|(name, _)| name.clone()))
}

fn read_config(container: &Container) -> Result<Value> {
    let path = container.spec_path();
    serde_json::from_slice(&spec::read(&path)?)
        .map_err(|source| Error::InvalidConfig { path, source })
}

fn apply(
    container: &Container,
    request: &Request,
    stored: &Resources,
    config: &Value,
    files: &mut ControlFiles,
) -> Result<()> {
    apply_limits(container, request, stored, files)?;
    apply_rdt(container, request, files)?;
    if container.record().systemd_cgroup {
        tell_systemd(container, config)?;
        // By now systemd has overwritten some files with its own values: a weight for block
        // devices, and a weight for a group that is idle. So all limits of the spec are written
        // again.
        apply_limits(container, &on_record(container, config)?, stored, files)?;
    }
    Ok(())
}

fn apply_limits(
    container: &Container,
    request: &Request,
    stored: &Resources,
    files: &mut ControlFiles,
) -> Result<()> {
    let cgroup = container.cgroup();
    match cgroup.dir("") {
        Some(dir) if cgroup.is_v2() => v2::apply(files, dir, &request.resources, stored)?,
        _ => v1::apply(files, &cgroup, &request.resources)?,
    }
    Ok(())
}

fn apply_rdt(container: &Container, request: &Request, files: &mut ControlFiles) -> Result<()> {
    let schemata: Vec<&str> = [&request.l3_cache_schema, &request.mem_bw_schema]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    if schemata.is_empty() {
        return Ok(());
    }
    let root = resctrl::mount_point();
    let can = |check: fn(&std::path::Path) -> bool| root.as_deref().is_some_and(check);
    if request.l3_cache_schema.is_some() && !can(resctrl::has_cache_allocation) {
        return Err(UpdateError::NoCacheAllocation.into());
    }
    if request.mem_bw_schema.is_some() && !can(resctrl::has_bandwidth_allocation) {
        return Err(UpdateError::NoBandwidthAllocation.into());
    }
    let group = Group::of(&container.spec()?, container.id()).ok_or(UpdateError::NoRdt)?;
    let text: String = schemata.iter().map(|line| format!("{line}\n")).collect();
    Ok(files.write(&group.schemata_path(), &text)?)
}

/// Returns all limits of a spec that this module can set.
fn on_record(container: &Container, config: &Value) -> Result<Request> {
    let mut resources: Resources = serde_json::from_value(config["linux"]["resources"].clone())
        .map_err(|source| Error::InvalidConfig {
            path: container.spec_path(),
            source,
        })?;
    // This member concerns only the change of a limit.
    resources.memory.check_before_update = None;
    Ok(Request {
        resources: resources.normalized(),
        ..Request::default()
    })
}

/// Stores the changes in the JSON of a spec.
fn enter(config: &mut Value, request: &Request) -> serde_json::Result<()> {
    if !config["linux"].is_object() {
        config["linux"] = json!({});
    }
    let linux = &mut config["linux"];
    request.resources.merge_into(&mut linux["resources"])?;
    if linux["resources"].is_null() {
        linux["resources"] = json!({});
    }
    for (name, schema) in [
        ("l3CacheSchema", &request.l3_cache_schema),
        ("memBwSchema", &request.mem_bw_schema),
    ] {
        if let Some(schema) = schema {
            linux["intelRdt"][name] = schema.as_str().into();
        }
    }
    Ok(())
}

/// Tells systemd the limits. It may write the properties of a unit into the control files at any
/// time, so it must know them.
fn tell_systemd(container: &Container, config: &Value) -> Result<()> {
    let path = container.spec_path();
    let text = serde_json::to_vec(config).map_err(|source| Error::InvalidConfig {
        path: path.clone(),
        source,
    })?;
    let spec: Spec = spec::parse(&path, &text)?;
    let Some(mut resources) = lower::resources(&spec).cloned() else {
        return Ok(());
    };
    lower::lower_resources(&mut resources);
    let record = container.record();
    let refused = |error: &dyn std::error::Error| UpdateError::Systemd {
        reason: chain(error),
    };
    let manager = || {
        create_cgroup_manager(libcontainer::cgroup_config(record)).map_err(|error| refused(&error))
    };
    manager()?
        .apply(&ControllerOpt {
            resources: &resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        })
        .map_err(|error| refused(&error))?;
    // systemd answers first, and writes the control files before it takes the next request
    // (src/core/manager.c, `manager_loop`). A second manager sends it a request: when
    // this has its answer, the files are written.
    manager()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_without_resources_gets_them() {
        let mut config = json!({"ociVersion": "1.0.2"});
        let request = Request {
            resources: serde_json::from_value(json!({"pids": {"limit": 5}})).unwrap(),
            l3_cache_schema: Some("L3:0=f".into()),
            mem_bw_schema: None,
        };
        enter(&mut config, &request).unwrap();
        assert_eq!(
            config["linux"],
            json!({"resources": {"pids": {"limit": 5}}, "intelRdt": {"l3CacheSchema": "L3:0=f"}})
        );
        let mut config = json!({"linux": {"namespaces": []}});
        enter(&mut config, &Request::default()).unwrap();
        assert_eq!(config["linux"], json!({"namespaces": [], "resources": {}}));
    }
}
