//! The intermediate process, between rcm and the container's process. It takes on the properties
//! that children inherit, and forks.

use caps::CapSet;
use libcontainer::capabilities::CapabilityExt;
use libcontainer::namespaces::Namespaces;
use libcontainer::process::args::ContainerType;
use libcontainer::process::channel;
use libcontainer::process::cpu_affinity::set_cpuset_affinity_from_string;
use libcontainer::process::init::container_init_process;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::{LaunchError, Outer, Result, system, time_offsets};
use crate::error::chain;
use crate::sys::fork::{Parent, fork};

/// The intermediate process's ends of the channels, and those that its child gets.
pub(super) struct Intermediate<'a> {
    pub outer: &'a Outer<'a>,
    pub to_us: &'a mut channel::MainSender,
    pub from_us: &'a mut channel::IntermediateReceiver,
    pub init_to_us: &'a mut channel::MainSender,
    pub init_from_us: &'a mut channel::InitReceiver,
}

impl Intermediate<'_> {
    /// Sets this process up, and forks the container's process.
    ///
    /// # Errors
    /// [`LaunchError`] for a failure in this process; the child reports its own.
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
        // Two log records with runc's names, which runc's users know.
        let own = Pid::this();
        tracing::debug!("nsexec[{own}]: => nsexec container setup");
        if let Ok(processors) = sched_getaffinity(own) {
            tracing::debug!(
                "nsexec[{own}]: affinity: {:#x}",
                first_processors(&processors)
            );
        }
        // The cgroup comes before all namespaces. The group becomes the root of a cgroup namespace,
        // and in a user namespace this process may not join it any more.
        self.outer.entry.enter(Pid::this()).map_err(if is_init {
            LaunchError::Cgroup
        } else {
            LaunchError::JoinCgroup
        })?;
        match affinity {
            Some(affinity) => {
                if let Some(processors) = affinity.cpu_affinity_final() {
                    set_cpuset_affinity_from_string(own, processors)?;
                }
            }
            None => reset_affinity(),
        }

        for namespace in self.outer.foreign {
            namespaces.unshare_or_setns(namespace)?;
        }
        if let Some(user) = namespaces.get(LinuxNamespaceType::User)? {
            self.enter_user_namespace(&namespaces, user)?;
            // Become root in the user namespace, to set up the container.
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
        // Only children of this process are in the PID namespace: hence the second fork.
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
            // Without privileges, rcm may write the mappings only of processes that it may look
            // into. A process that is not dumpable is none of these, so it is dumpable for this
            // moment.
            set_dumpable(true)?;
            self.to_us.identifier_mapping_request()?;
            self.from_us.wait_for_mapping_ack()?;
            set_dumpable(false)?;
        }
        Ok(())
    }

    /// Becomes the container's process: libcontainer's part. Returns only if that fails.
    fn become_init(&mut self) -> i32 {
        let _ = prctl::set_name(c"rcm:[2:INIT]");
        let _ = self.to_us.close();
        tracing::debug!("child process in init()");
        let done = self
            .keep_inheritable()
            .map_err(|error| chain(&error))
            .and_then(|()| {
                container_init_process(self.outer.args, self.init_to_us, self.init_from_us)
                    .map_err(|error| error.to_string())
            });
        match done {
            Ok(()) => 0,
            Err(text) => {
                let _ = self.init_to_us.exec_failed(text.clone());
                if let Some(pipe) = self.outer.errors {
                    let _ = nix::unistd::write(pipe, text.as_bytes());
                }
                // runc's exit status for every failure.
                255
            }
        }
    }
}

fn set_dumpable(dumpable: bool) -> Result<()> {
    prctl::set_dumpable(dumpable).map_err(system("change who may look into a process"))
}

impl Intermediate<'_> {
    /// Sets the inheritable capabilities while all are permitted. libcontainer drops capabilities
    /// first and sets these afterwards. By then a capability that is not permitted may stay
    /// inheritable, but cannot become so (capabilities(7)).
    fn keep_inheritable(&self) -> Result<()> {
        let process = self.outer.args.spec.process().as_ref();
        let Some(sets) = process.and_then(|process| process.capabilities().as_ref()) else {
            return Ok(());
        };
        let inheritable = sets.inheritable().iter().flatten();
        let inheritable = inheritable.map(CapabilityExt::to_cap).collect();
        let syscall = self.outer.args.syscall.create_syscall();
        Ok(syscall.set_capability(CapSet::Inheritable, &inheritable)?)
    }
}

/// Allows all processors. rcm's own affinity must not limit the container: the kernel applies the
/// cpuset of the container's group to the mask.
fn reset_affinity() {
    let mut all = CpuSet::new();
    for processor in 0..CpuSet::count() {
        // Cannot fail for a number below the count.
        let _ = all.set(processor);
    }
    if let Err(errno) = sched_setaffinity(Pid::this(), &all) {
        tracing::warn!("the container keeps rcm's CPU affinity: resetting it failed: {errno}");
    }
}

/// Returns a mask of the first processors, as many as fit.
fn first_processors(processors: &CpuSet) -> usize {
    (0..usize::BITS as usize)
        .filter(|processor| processors.is_set(*processor).unwrap_or(false))
        .fold(0, |mask, processor| mask | 1 << processor)
}
