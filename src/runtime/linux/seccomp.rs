//! Seccomp filters: differences between libcontainer and runc.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};

/// Filter that would ask its listener in a situation where that cannot work. The sentences are
/// runc's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSeccomp {
    /// The listener would be asked about every system call.
    #[error("SCMP_ACT_NOTIFY cannot be used as default action")]
    NotifyByDefault,
    /// The process could not send the filter's descriptor to the listener, because that is a write.
    #[error("SCMP_ACT_NOTIFY cannot be used for the write syscall")]
    NotifyOfWrite,
}

/// Checks a filter.
///
/// # Errors
/// [`InvalidSeccomp`].
pub(crate) fn validate(seccomp: &LinuxSeccomp) -> Result<(), InvalidSeccomp> {
    if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(InvalidSeccomp::NotifyByDefault);
    }
    let asks_about_write = seccomp.syscalls().iter().flatten().any(|rule| {
        rule.action() == LinuxSeccompAction::ScmpActNotify
            && rule.names().iter().any(|name| name == "write")
    });
    if asks_about_write {
        Err(InvalidSeccomp::NotifyOfWrite)
    } else {
        Ok(())
    }
}

/// Changes a filter so that libcontainer understands it as runc does.
pub(crate) fn lower(seccomp: &mut LinuxSeccomp) {
    if seccomp.flags().is_none() {
        // As runc without flags: processes under a filter are not slowed down by the mitigation for
        // Spectre (seccomp(2)).
        seccomp.set_flags(Some(vec![
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
        ]));
    }
    let flags = seccomp
        .flags()
        .iter()
        .flatten()
        .fold(0, |all, flag| all | number(*flag));
    tracing::debug!("seccomp filter flags: {flags}");

    let mut syscalls = seccomp.syscalls().clone();
    for rule in syscalls.iter_mut().flatten() {
        let mut args = rule.args().clone();
        for arg in args.iter_mut().flatten() {
            if arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq {
                // In the spec, `value` is the mask and `valueTwo` the masked value. libcontainer
                // takes them the other way round, and a mask of 0 would let everything pass.
                let swapped = LinuxSeccompArgBuilder::default()
                    .index(arg.index())
                    .value(arg.value_two().unwrap_or(0))
                    .value_two(arg.value())
                    .op(arg.op())
                    .build();
                // All members have defaults and none is checked, so this cannot fail.
                *arg = swapped.unwrap_or_default();
            }
        }
        rule.set_args(args);
    }
    seccomp.set_syscalls(syscalls);
}

/// Returns the flag's value, `SECCOMP_FILTER_FLAG_*` of `<linux/seccomp.h>`. One thread needs no
/// `TSYNC`; runc leaves it out, too.
fn number(flag: LinuxSeccompFilterFlag) -> u32 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seccomp(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn masks_are_what_the_engine_takes_for_masks() {
        let mut filter = seccomp(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 0x7e02_0000, "op": "SCMP_CMP_MASKED_EQ"},
                {"index": 1, "value": 7, "op": "SCMP_CMP_EQ"}
            ]}]
        }));
        lower(&mut filter);
        let args = filter.syscalls().clone().unwrap()[0]
            .args()
            .clone()
            .unwrap();
        assert_eq!(
            (args[0].value(), args[0].value_two()),
            (0, Some(0x7e02_0000))
        );
        assert_eq!((args[1].value(), args[1].value_two()), (7, None));
    }

    #[test]
    fn no_flags_are_other_than_none_given() {
        let mut absent = seccomp(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"}));
        let mut empty =
            seccomp(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": []}));
        lower(&mut absent);
        lower(&mut empty);
        assert_eq!(absent.flags().as_ref().map(Vec::len), Some(1));
        assert_eq!(empty.flags().as_ref().map(Vec::len), Some(0));
    }

    #[test]
    fn what_the_listener_needs_is_not_asked_about() {
        for (json, sentence) in [
            (
                serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
                "default action",
            ),
            (
                serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"}]}),
                "the write syscall",
            ),
        ] {
            let error = validate(&seccomp(json)).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
