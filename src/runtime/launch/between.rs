//! The process between rcm and the container's: it takes on what children inherit, and forks.

use libcontainer::namespaces::Namespaces;
use libcontainer::process::args::ContainerType;
use libcontainer::process::channel;
use libcontainer::process::cpu_affinity::set_cpuset_affinity_from_string;
use libcontainer::process::init::container_init_process;
use nix::sys::prctl;
use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::{LaunchError, Outer, Result, system, time_offsets};
use crate::sys::fork::{Parent, fork};

/// Its ends of the channels, and those that its child gets.
pub(super) struct Between<'a> {
    pub outer: &'a Outer<'a>,
    pub to_us: &'a mut channel::MainSender,
    pub from_us: &'a mut channel::IntermediateReceiver,
    pub init_to_us: &'a mut channel::MainSender,
    pub init_from_us: &'a mut channel::InitReceiver,
}

impl Between<'_> {
    /// # Errors
    /// [`LaunchError`] of what failed in this process; the child reports its own.
    pub fn run(&mut self) -> Result<()> {
        let args = self.outer.args;
        let syscall = args.syscall.create_syscall();
        let linux = args.spec.linux().clone().unwrap_or_default();
        let namespaces = Namespaces::try_from(linux.namespaces().as_ref())?;
        let is_init = matches!(args.container_type, ContainerType::InitContainer);
        let process = args.spec.process().as_ref();
        let affinity = process
            .filter(|_| !is_init)
            .and_then(|process| process.exec_cpu_affinity().as_ref());

        if let Some(processors) = affinity.and_then(|one| one.initial().as_ref()) {
            set_cpuset_affinity_from_string(Pid::this(), processors)?;
        }
        // Before all namespaces: the group becomes the root of a cgroup namespace, and in a user namespace the right to join it is lost.
        self.outer.entry.enter(Pid::this()).map_err(match is_init {
            true => LaunchError::Cgroup,
            false => LaunchError::JoinCgroup,
        })?;
        if let Some(processors) = affinity.and_then(|one| one.cpu_affinity_final().as_ref()) {
            set_cpuset_affinity_from_string(Pid::this(), processors)?;
        }

        if let Some(user) = namespaces.get(LinuxNamespaceType::User)? {
            self.enter_user_namespace(&namespaces, user)?;
            // Whoever this was outside, in here it sets up a container.
            syscall.set_id(Uid::from_raw(0), Gid::from_raw(0))?;
        }
        let limits = process.and_then(|process| process.rlimits().as_ref());
        for limit in limits.into_iter().flatten() {
            syscall.set_rlimit(limit)?;
        }
        if let Some(time) = namespaces.get(LinuxNamespaceType::Time)? {
            namespaces.unshare_or_setns(time)?;
            if time_offsets(&linux).is_some() {
                set_dumpable(true)?;
                self.to_us.time_offset_request()?;
                self.from_us.wait_for_time_offsets_ack()?;
                set_dumpable(false)?;
            }
        }
        // Only children are in it: hence the second fork.
        if let Some(pids) = namespaces.get(LinuxNamespaceType::Pid)? {
            namespaces.unshare_or_setns(pids)?;
        }
        if self.outer.visible {
            set_dumpable(true)?;
        }
        let pid = fork(Parent::OfThis, || self.become_init()).map_err(system("fork"))?;
        self.to_us.intermediate_ready(pid)?;
        Ok(())
    }

    fn enter_user_namespace(
        &mut self,
        namespaces: &Namespaces,
        user: &LinuxNamespace,
    ) -> Result<()> {
        namespaces.unshare_or_setns(user)?;
        if user.path().is_none() {
            // Without privileges rcm may write the mappings of its like only, and this is not one while it is not dumpable.
            set_dumpable(true)?;
            self.to_us.identifier_mapping_request()?;
            self.from_us.wait_for_mapping_ack()?;
            set_dumpable(false)?;
        }
        Ok(())
    }

    /// The child: the engine's work. Returns only where that fails.
    fn become_init(&mut self) -> i32 {
        let _ = prctl::set_name(c"rcm:[2:INIT]");
        let _ = self.to_us.close();
        match container_init_process(self.outer.args, self.init_to_us, self.init_from_us) {
            Ok(()) => 0,
            Err(error) => {
                let text = error.to_string();
                let _ = self.init_to_us.exec_failed(text.clone());
                if let Some(pipe) = self.outer.errors {
                    let _ = nix::unistd::write(pipe, text.as_bytes());
                }
                1
            }
        }
    }
}

fn set_dumpable(dumpable: bool) -> Result<()> {
    prctl::set_dumpable(dumpable).map_err(system("change who may look into a process"))
}
