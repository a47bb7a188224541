//! Container engines that use rcm as their runtime: Docker, containerd, Podman, CRI-O.

pub mod detect;
