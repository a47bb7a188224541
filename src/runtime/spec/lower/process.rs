//! Validation and lowering of a spec's `process`.

use std::path::Path;

use oci_spec::runtime::{Capabilities, Process};

use super::error::{InvalidSpec, Result};

/// Checks a `process` object.
///
/// # Errors
/// [`InvalidSpec`].
pub fn validate_process(process: &Process) -> Result<()> {
    if process.cwd().as_os_str().is_empty() {
        return Err(InvalidSpec::Missing { property: "Cwd" });
    }
    if !process.cwd().is_absolute() {
        return Err(InvalidSpec::RelativeCwd);
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(InvalidSpec::Missing { property: "args" });
    }
    if process
        .selinux_label()
        .as_ref()
        .is_some_and(|label| !label.is_empty())
        && !Path::new("/sys/fs/selinux/enforce").exists()
    {
        return Err(InvalidSpec::SeLinux);
    }
    if let Some(profile) = process.apparmor_profile()
        && !profile.is_empty()
        && !libcontainer::apparmor::is_enabled().unwrap_or(false)
    {
        return Err(InvalidSpec::AppArmor {
            profile: profile.clone(),
        });
    }
    Ok(())
}

/// Turns a process, of a spec or one that joins a container, into the one that libcontainer runs.
///
/// libcontainer decides by the presence of `noNewPrivileges`, and not by its value, when it loads
/// the seccomp filter. It also takes an empty AppArmor profile for a profile.
pub fn normalize_process(process: &mut Process) {
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    if process.apparmor_profile().as_deref() == Some("") {
        process.set_apparmor_profile(None);
    }
    complete_capabilities(process);
    drop_unreachable_ambient(process);
}

/// Makes absent capability sets empty. libcontainer would leave such a set as it is, which is full.
fn complete_capabilities(process: &mut Process) {
    let Some(mut sets) = process.capabilities().clone() else {
        return;
    };
    let given = |set: &Option<Capabilities>| Some(set.clone().unwrap_or_default());
    let (bounding, effective) = (given(sets.bounding()), given(sets.effective()));
    let (permitted, inheritable) = (given(sets.permitted()), given(sets.inheritable()));
    let ambient = given(sets.ambient());
    sets.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted)
        .set_inheritable(inheritable)
        .set_ambient(ambient);
    process.set_capabilities(Some(sets));
}

/// Drops ambient capabilities that are not inheritable and permitted (capabilities(7)).
/// libcontainer would fail; runc warns.
fn drop_unreachable_ambient(process: &mut Process) {
    let Some(mut sets) = process.capabilities().clone() else {
        return;
    };
    let Some(mut ambient) = sets.ambient().clone() else {
        return;
    };
    let empty = Capabilities::default();
    let inheritable = sets.inheritable().as_ref().unwrap_or(&empty);
    let permitted = sets.permitted().as_ref().unwrap_or(&empty);
    ambient.retain(|one| {
        let reachable = inheritable.contains(one) && permitted.contains(one);
        if !reachable {
            tracing::warn!("can't raise ambient capability CAP_{one}: operation not permitted");
        }
        reachable
    });
    sets.set_ambient(Some(ambient));
    process.set_capabilities(Some(sets));
}
