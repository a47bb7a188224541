//! The messages: converts typed options to protobuf and protobuf back. This is the only place that
//! names a protobuf type.

use std::os::fd::{AsRawFd, RawFd};

use protobuf::{EnumOrUnknown, Message, MessageField};
use rust_criu::rust_criu_protobuf::rpc as pb;

use super::choices::ManageCgroups;
use super::error::Action;
use super::options::{
    Common, DumpOptions, NetworkLockMethod, PageServer, PreDumpMode, RestoreOptions,
};
use super::version::{Features, Version};

/// A response or a notification of CRIU.
#[derive(Debug, Clone)]
pub(super) struct Response(pb::Criu_resp);

impl Response {
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        pb::Criu_resp::parse_from_bytes(packet).ok().map(Self)
    }

    /// Returns the name of the stage if this is a notification. Some stages also tell a process.
    pub(super) fn notification(&self) -> Option<(&str, Option<i32>)> {
        let notify = self.0.notify.as_ref()?;
        (self.0.type_() == pb::Criu_req_type::NOTIFY).then(|| (notify.script(), notify.pid))
    }

    pub(super) fn is_success(&self) -> bool {
        self.0.success()
    }

    /// Returns the first error that CRIU kept for the answer.
    pub(super) fn message(&self) -> Option<&str> {
        self.0.cr_errmsg.as_deref().filter(|text| !text.is_empty())
    }
}

fn request(kind: pb::Criu_req_type) -> pb::Criu_req {
    let mut request = pb::Criu_req::new();
    request.type_ = Some(EnumOrUnknown::new(kind));
    request
}

fn bytes(request: &pb::Criu_req) -> Vec<u8> {
    // Encoding fails only if a required field is missing, and each is set above.
    // `CriuSession::send` refuses the empty packet.
    request.write_to_bytes().unwrap_or_default()
}

pub(super) fn version_request() -> Vec<u8> {
    bytes(&request(pb::Criu_req_type::VERSION))
}

pub(super) fn version(response: &Response) -> Option<Version> {
    let version = response.0.version.as_ref()?;
    let part = |number: i32| u32::try_from(number).ok();
    Some(Version::new(
        part(version.major_number())?,
        part(version.minor_number())?,
        part(version.sublevel())?,
    ))
}

pub(super) fn feature_request() -> Vec<u8> {
    let mut request = request(pb::Criu_req_type::FEATURE_CHECK);
    let mut features = pb::Criu_features::new();
    features.set_mem_track(true);
    features.set_lazy_pages(true);
    features.set_pidfd_store(true);
    request.features = MessageField::some(features);
    bytes(&request)
}

pub(super) fn features(response: &Response) -> Option<Features> {
    let features = response.0.features.as_ref()?;
    Some(Features {
        memory_tracking: features.mem_track(),
        lazy_pages: features.lazy_pages(),
        pidfd_store: features.pidfd_store(),
    })
}

/// Makes the request to describe the processor in the image directory, or to check it against the
/// description there.
pub(super) fn processor_request(action: Action, images: RawFd) -> Vec<u8> {
    /// `CPU_CAP_FPU` and `CPU_CAP_INS`, which are CRIU's default for a restore
    /// (criu/include/cr_options.h, CRIU 4.2). Without them the check wants the same processor here.
    const CAN_EXECUTE: u32 = 1 | 4;
    let mut opts = pb::Criu_opts::new();
    opts.set_images_dir_fd(images);
    opts.set_cpu_cap(CAN_EXECUTE);
    let mut request = request(match action {
        Action::CpuinfoCheck => pb::Criu_req_type::CPUINFO_CHECK,
        _ => pb::Criu_req_type::CPUINFO_DUMP,
    });
    request.opts = MessageField::some(opts);
    bytes(&request)
}

/// Makes the answer to a notification. CRIU reads `external` only after `query-ext-files`.
pub(super) fn answer(yes: bool, external: &[String]) -> Vec<u8> {
    let mut request = request(pb::Criu_req_type::NOTIFY);
    request.set_notify_success(yes);
    if !external.is_empty() {
        let mut opts = pb::Criu_opts::new();
        opts.set_images_dir_fd(-1);
        opts.external = external.to_vec();
        request.opts = MessageField::some(opts);
    }
    bytes(&request)
}

/// The descriptors that CRIU opens through `/proc/PID/fd` of the process that made the socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Directories {
    pub images: RawFd,
    pub work: Option<RawFd>,
}

pub(super) fn dump_request(
    options: &DumpOptions,
    directories: Directories,
    log_file: &str,
    pre_dump: bool,
) -> Vec<u8> {
    let mut opts = common(&options.common, directories, log_file);
    opts.pid = Some(options.pid);
    opts.leave_running = Some(options.leave_running);
    opts.tcp_skip_in_flight = Some(options.tcp_skip_in_flight);
    opts.link_remap = Some(options.common.choices.link_remap);
    opts.freeze_cgroup = options.freeze_cgroup.as_ref().map(path);
    opts.parent_img = options.parent_images.as_ref().map(path);
    opts.track_mem = Some(options.track_memory);
    opts.ghost_limit = options.ghost_limit_bytes;
    opts.ps = match &options.page_connection {
        Some(connection) => {
            let mut message = pb::Criu_page_server_info::new();
            message.set_fd(connection.as_raw_fd());
            MessageField::some(message)
        }
        None => options.page_server.as_ref().map(page_server).into(),
    };
    opts.pre_dump_mode = options.pre_dump_mode.map(|mode| {
        EnumOrUnknown::new(match mode {
            PreDumpMode::Splice => pb::Criu_pre_dump_mode::SPLICE,
            PreDumpMode::Read => pb::Criu_pre_dump_mode::VM_READ,
        })
    });
    // PRE_DUMP would make CRIU wait for more requests on the same connection.
    let mut request = request(if pre_dump {
        pb::Criu_req_type::SINGLE_PRE_DUMP
    } else {
        pb::Criu_req_type::DUMP
    });
    request.opts = MessageField::some(opts);
    bytes(&request)
}

pub(super) fn restore_request(
    options: &RestoreOptions,
    directories: Directories,
    log_file: &str,
) -> Vec<u8> {
    let mut opts = common(&options.common, directories, log_file);
    opts.evasive_devices = Some(true);
    // The restored first process becomes this process's child, so that its exit status can be
    // waited for.
    opts.rst_sibling = Some(true);
    opts.lsm_profile.clone_from(&options.lsm_profile);
    opts.lsm_mount_context
        .clone_from(&options.lsm_mount_context);
    opts.skip_file_rwx_check = options.skip_file_rwx_check.then_some(true);
    opts.inherit_fd = options
        .inherited
        .iter()
        .map(|inherited| {
            let mut message = pb::Inherit_fd::new();
            message.set_key(inherited.key.clone());
            message.set_fd(inherited.fd.as_raw_fd());
            message
        })
        .collect();
    opts.join_ns = options
        .join_namespaces
        .iter()
        .map(|namespace| {
            let mut message = pb::Join_namespace::new();
            message.set_ns(namespace.kind.to_owned());
            message.set_ns_file(path(&namespace.path));
            message
        })
        .collect();
    opts.cg_root = options
        .cgroup_roots
        .iter()
        .map(|root| {
            let mut message = pb::Cgroup_root::new();
            message.ctrl.clone_from(&root.controller);
            message.set_path(root.path.clone());
            message
        })
        .collect();
    let mut request = request(pb::Criu_req_type::RESTORE);
    request.opts = MessageField::some(opts);
    bytes(&request)
}

fn common(options: &Common, directories: Directories, log_file: &str) -> pb::Criu_opts {
    let mut opts = pb::Criu_opts::new();
    opts.set_images_dir_fd(directories.images);
    opts.work_dir_fd = directories.work;
    opts.set_log_file(log_file.to_owned());
    opts.set_log_level(options.log_level);
    opts.root = options.root.as_ref().map(path);
    opts.set_notify_scripts(true);
    opts.set_orphan_pts_master(true);
    let choices = &options.choices;
    opts.set_tcp_established(choices.tcp_established);
    opts.set_ext_unix_sk(choices.ext_unix_sk);
    opts.set_shell_job(choices.shell_job);
    opts.set_file_locks(choices.file_locks);
    opts.set_lazy_pages(options.lazy_pages);
    opts.set_auto_dedup(options.auto_dedup);
    // Older versions know only this flag.
    opts.set_manage_cgroups(options.manage_cgroups != ManageCgroups::Ignore);
    opts.manage_cgroups_mode = Some(EnumOrUnknown::new(match options.manage_cgroups {
        ManageCgroups::Default => pb::Criu_cg_mode::DEFAULT,
        ManageCgroups::Soft => pb::Criu_cg_mode::SOFT,
        ManageCgroups::Full => pb::Criu_cg_mode::FULL,
        ManageCgroups::Strict => pb::Criu_cg_mode::STRICT,
        ManageCgroups::Ignore => pb::Criu_cg_mode::IGNORE,
    }));
    if options.empty_network_namespace {
        opts.set_empty_ns(libc::CLONE_NEWNET as u32);
    }
    opts.external = options.external.iter().map(ToString::to_string).collect();
    opts.config_file = options.config_file.as_ref().map(path);
    opts.network_lock = options.network_lock.map(|method| {
        EnumOrUnknown::new(match method {
            NetworkLockMethod::Iptables => pb::Criu_network_lock_method::IPTABLES,
            NetworkLockMethod::Nftables => pb::Criu_network_lock_method::NFTABLES,
            NetworkLockMethod::Skip => pb::Criu_network_lock_method::SKIP,
        })
    });
    opts
}

fn page_server(server: &PageServer) -> pb::Criu_page_server_info {
    let mut message = pb::Criu_page_server_info::new();
    message.address.clone_from(&server.address);
    message.set_port(i32::from(server.port));
    message
}

/// Formats a path for the protocol, whose strings are UTF-8. CRIU's protocol cannot name any other
/// path.
fn path(path: impl AsRef<std::path::Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

/// Parses the fields of an encoded message for which there is no generated type: the statistics.
pub(super) fn fields(message: &[u8]) -> Option<Vec<(u32, FieldValue)>> {
    let mut input = protobuf::CodedInputStream::from_bytes(message);
    let mut fields = Vec::new();
    while let Some(tag) = input.read_raw_tag_or_eof().ok()? {
        // The low three bits are the wire type, the others the number (protobuf's encoding guide).
        let (number, wire_type) = (tag >> 3, tag & 7);
        let value = match wire_type {
            0 => FieldValue::Number(input.read_raw_varint64().ok()?),
            1 => FieldValue::Number(input.read_fixed64().ok()?),
            2 => FieldValue::Bytes(input.read_bytes().ok()?),
            5 => FieldValue::Number(input.read_fixed32().ok()?.into()),
            _ => return None,
        };
        fields.push((number, value));
    }
    Some(fields)
}

/// A field's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FieldValue {
    /// An integer.
    Number(u64),
    /// A string, bytes or a nested message.
    Bytes(Vec<u8>),
}

/// Messages of the fake CRIU of the unit tests.
#[cfg(test)]
pub(super) mod fake {
    use super::*;

    pub(crate) fn notification(stage: &str, pid: Option<i32>) -> Vec<u8> {
        let mut notify = pb::Criu_notify::new();
        notify.set_script(stage.to_owned());
        notify.pid = pid;
        let mut response = response(pb::Criu_req_type::NOTIFY, true);
        response.notify = MessageField::some(notify);
        response.write_to_bytes().unwrap()
    }

    pub(crate) fn finished(success: bool, message: Option<&str>) -> Vec<u8> {
        let mut response = response(pb::Criu_req_type::DUMP, success);
        response.cr_errmsg = message.map(str::to_owned);
        response.write_to_bytes().unwrap()
    }

    fn response(kind: pb::Criu_req_type, success: bool) -> pb::Criu_resp {
        let mut response = pb::Criu_resp::new();
        response.type_ = Some(EnumOrUnknown::new(kind));
        response.set_success(success);
        response
    }

    /// Parses an answer to a notification: whether it was a yes, and which external resources it
    /// named.
    pub(crate) fn parse_answer(packet: &[u8]) -> (bool, Vec<String>) {
        let request = pb::Criu_req::parse_from_bytes(packet).unwrap();
        assert_eq!(request.type_(), pb::Criu_req_type::NOTIFY);
        (request.notify_success(), request.opts.external.clone())
    }

    pub(crate) fn parse_options(packet: &[u8]) -> pb::Criu_opts {
        *pb::Criu_req::parse_from_bytes(packet)
            .unwrap()
            .opts
            .0
            .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::CriuChoices;
    use crate::criu::options::External;

    const DIRECTORIES: Directories = Directories {
        images: 7,
        work: Some(8),
    };

    #[test]
    fn dump_options_reach_the_message() {
        let options = DumpOptions {
            common: Common {
                choices: CriuChoices {
                    tcp_established: true,
                    link_remap: true,
                    ..CriuChoices::default()
                },
                empty_network_namespace: true,
                manage_cgroups: ManageCgroups::Full,
                network_lock: Some(NetworkLockMethod::Skip),
                external: vec![External::File {
                    mount_id: 1,
                    inode: 2,
                }],
                ..Common::default()
            },
            pid: 42,
            parent_images: Some("../1".into()),
            track_memory: true,
            pre_dump_mode: Some(PreDumpMode::Read),
            ..DumpOptions::default()
        };
        let opts = fake::parse_options(&dump_request(&options, DIRECTORIES, "dump.log", true));
        assert_eq!((opts.images_dir_fd(), opts.work_dir_fd()), (7, 8));
        assert_eq!(opts.pid(), 42);
        assert!(
            opts.link_remap()
                && opts.tcp_established()
                && opts.track_mem()
                && opts.notify_scripts()
        );
        assert_eq!(opts.empty_ns(), 0x4000_0000);
        assert_eq!(opts.parent_img(), "../1");
        assert_eq!(opts.external, ["file[1:2]"]);
        assert_eq!(opts.manage_cgroups_mode(), pb::Criu_cg_mode::FULL);
        assert_eq!(opts.network_lock(), pb::Criu_network_lock_method::SKIP);
        assert_eq!(opts.pre_dump_mode(), pb::Criu_pre_dump_mode::VM_READ);
    }

    #[test]
    fn required_fields_are_always_set() {
        for packet in [
            dump_request(&DumpOptions::default(), DIRECTORIES, "l", false),
            restore_request(&RestoreOptions::default(), DIRECTORIES, "l"),
            answer(true, &["file[1:2]".into()]),
            version_request(),
            feature_request(),
        ] {
            assert!(!packet.is_empty());
        }
    }

    #[test]
    fn garbage_is_no_response() {
        assert!(Response::parse(b"\xff\xff\xff").is_none());
        assert!(
            Response::parse(b"").is_none(),
            "type and success are required"
        );
    }
}
