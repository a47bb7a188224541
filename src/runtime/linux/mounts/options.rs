//! Mount options as runc understands them.

use nix::mount::MsFlags;
use oci_spec::runtime::Mount;

use crate::sys::tree::Attributes;

/// Effect of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Sets flags of mount(2).
    Set(MsFlags),
    /// Clears flags of mount(2).
    Clear(MsFlags),
    /// Sets the propagation, after the mount is made.
    Propagate(MsFlags),
    /// Sets attributes on this mount and all mounts below.
    SetAll(u64),
    /// Clears attributes on this mount and all mounts below.
    ClearAll(u64),
    /// Fills a tmpfs with a copy of the directory that it covers.
    CopyUp,
}

use Effect::{Clear, ClearAll, CopyUp, Propagate, Set, SetAll};

/// `MS_NOSYMFOLLOW` of `<linux/mount.h>`, Linux 5.10.
const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// Every option that is no file system's data, sorted by name. `acl` and `noacl` are data.
const OPTIONS: &[(&str, Effect)] = &[
    ("async", Clear(MsFlags::MS_SYNCHRONOUS)),
    ("atime", Clear(MsFlags::MS_NOATIME)),
    ("bind", Set(MsFlags::MS_BIND)),
    ("defaults", Set(MsFlags::empty())),
    ("dev", Clear(MsFlags::MS_NODEV)),
    ("diratime", Clear(MsFlags::MS_NODIRATIME)),
    ("dirsync", Set(MsFlags::MS_DIRSYNC)),
    ("exec", Clear(MsFlags::MS_NOEXEC)),
    ("iversion", Set(MsFlags::MS_I_VERSION)),
    ("lazytime", Set(MsFlags::MS_LAZYTIME)),
    ("loud", Clear(MsFlags::MS_SILENT)),
    ("mand", Set(MsFlags::MS_MANDLOCK)),
    ("noatime", Set(MsFlags::MS_NOATIME)),
    ("nodev", Set(MsFlags::MS_NODEV)),
    ("nodiratime", Set(MsFlags::MS_NODIRATIME)),
    ("noexec", Set(MsFlags::MS_NOEXEC)),
    ("noiversion", Clear(MsFlags::MS_I_VERSION)),
    ("nolazytime", Clear(MsFlags::MS_LAZYTIME)),
    ("nomand", Clear(MsFlags::MS_MANDLOCK)),
    ("norelatime", Clear(MsFlags::MS_RELATIME)),
    ("nostrictatime", Clear(MsFlags::MS_STRICTATIME)),
    ("nosuid", Set(MsFlags::MS_NOSUID)),
    ("nosymfollow", Set(NOSYMFOLLOW)),
    ("private", Propagate(MsFlags::MS_PRIVATE)),
    ("ratime", ClearAll(libc::MOUNT_ATTR_NOATIME)),
    ("rbind", Set(MsFlags::MS_BIND.union(MsFlags::MS_REC))),
    ("rdev", ClearAll(libc::MOUNT_ATTR_NODEV)),
    ("rdiratime", ClearAll(libc::MOUNT_ATTR_NODIRATIME)),
    ("relatime", Set(MsFlags::MS_RELATIME)),
    ("remount", Set(MsFlags::MS_REMOUNT)),
    ("rexec", ClearAll(libc::MOUNT_ATTR_NOEXEC)),
    ("rnoatime", SetAll(libc::MOUNT_ATTR_NOATIME)),
    ("rnodev", SetAll(libc::MOUNT_ATTR_NODEV)),
    ("rnodiratime", SetAll(libc::MOUNT_ATTR_NODIRATIME)),
    ("rnoexec", SetAll(libc::MOUNT_ATTR_NOEXEC)),
    ("rnorelatime", ClearAll(libc::MOUNT_ATTR_RELATIME)),
    ("rnostrictatime", ClearAll(libc::MOUNT_ATTR_STRICTATIME)),
    ("rnosuid", SetAll(libc::MOUNT_ATTR_NOSUID)),
    ("rnosymfollow", SetAll(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("ro", Set(MsFlags::MS_RDONLY)),
    (
        "rprivate",
        Propagate(MsFlags::MS_PRIVATE.union(MsFlags::MS_REC)),
    ),
    ("rrelatime", SetAll(libc::MOUNT_ATTR_RELATIME)),
    ("rro", SetAll(libc::MOUNT_ATTR_RDONLY)),
    ("rrw", ClearAll(libc::MOUNT_ATTR_RDONLY)),
    (
        "rshared",
        Propagate(MsFlags::MS_SHARED.union(MsFlags::MS_REC)),
    ),
    (
        "rslave",
        Propagate(MsFlags::MS_SLAVE.union(MsFlags::MS_REC)),
    ),
    ("rstrictatime", SetAll(libc::MOUNT_ATTR_STRICTATIME)),
    ("rsuid", ClearAll(libc::MOUNT_ATTR_NOSUID)),
    ("rsymfollow", ClearAll(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    (
        "runbindable",
        Propagate(MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC)),
    ),
    ("rw", Clear(MsFlags::MS_RDONLY)),
    ("shared", Propagate(MsFlags::MS_SHARED)),
    ("silent", Set(MsFlags::MS_SILENT)),
    ("slave", Propagate(MsFlags::MS_SLAVE)),
    ("strictatime", Set(MsFlags::MS_STRICTATIME)),
    ("suid", Clear(MsFlags::MS_NOSUID)),
    ("symfollow", Clear(NOSYMFOLLOW)),
    ("sync", Set(MsFlags::MS_SYNCHRONOUS)),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagate(MsFlags::MS_UNBINDABLE)),
];

/// Returns the name of every option that is no file system's data, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|(name, _)| *name)
}

/// Returns whether a mount of a spec binds a path of the host.
#[must_use]
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind")
}

/// Options of one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Flags of mount(2) that are set.
    pub set: MsFlags,
    /// Flags of mount(2) that are cleared explicitly.
    pub cleared: MsFlags,
    /// Changes of the propagation, in their order.
    pub propagation: Vec<MsFlags>,
    /// Attributes that apply to all mounts below, too.
    pub recursive: Attributes,
    /// `idmap` (false) or `ridmap` (true).
    pub id_mapped: Option<bool>,
    /// Whether `tmpcopyup` is given.
    pub copy_up: bool,
    /// Options for the file system.
    pub data: Vec<String>,
}

/// Flags of mount(2) that are attributes of a mount and not of a file system, with their values for
/// mount_setattr(2).
const ATTRIBUTES: [(MsFlags, u64); 5] = [
    (MsFlags::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
    (MsFlags::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
    (MsFlags::MS_NODEV, libc::MOUNT_ATTR_NODEV),
    (MsFlags::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    (NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
];

/// Flags that decide when the time of the last access is written.
const ACCESS_TIMES: MsFlags = MsFlags::MS_NOATIME
    .union(MsFlags::MS_NODIRATIME)
    .union(MsFlags::MS_RELATIME)
    .union(MsFlags::MS_STRICTATIME);

impl Options {
    /// Parses a list of options; a later one wins.
    pub fn parse<S: AsRef<str>>(options: impl IntoIterator<Item = S>) -> Self {
        let mut all = Self {
            set: MsFlags::empty(),
            cleared: MsFlags::empty(),
            propagation: Vec::new(),
            recursive: Attributes::default(),
            id_mapped: None,
            copy_up: false,
            data: Vec::new(),
        };
        for option in options {
            all.add(option.as_ref());
        }
        all
    }

    fn add(&mut self, option: &str) {
        let found = OPTIONS.binary_search_by_key(&option, |(name, _)| name);
        match found.map(|index| OPTIONS[index].1) {
            Ok(Set(flags)) => {
                self.set |= flags;
                self.cleared -= flags;
            }
            Ok(Clear(flags)) => {
                self.set -= flags;
                self.cleared |= flags;
            }
            Ok(Propagate(flags)) => self.propagation.push(flags),
            Ok(SetAll(attributes)) => {
                self.recursive.set |= attributes;
                self.recursive.clear &= !attributes;
                self.replace_access_times(attributes);
            }
            Ok(ClearAll(attributes)) => {
                self.recursive.clear |= attributes;
                self.recursive.set &= !attributes;
                self.replace_access_times(attributes);
            }
            Ok(CopyUp) => self.copy_up = true,
            Err(_) => match option {
                "idmap" => self.id_mapped = Some(false),
                "ridmap" => self.id_mapped = Some(true),
                data => self.data.push(data.to_owned()),
            },
        }
    }

    /// Clears the whole field if one of the access times is changed. They are one value of several
    /// bits, and mount_setattr(2) requires that. `MOUNT_ATTR_RELATIME` is 0.
    fn replace_access_times(&mut self, attributes: u64) {
        if attributes & libc::MOUNT_ATTR__ATIME == attributes {
            self.recursive.clear |= libc::MOUNT_ATTR__ATIME;
        }
    }

    /// Returns whether all mounts below a path are bound, too.
    #[must_use]
    pub fn is_recursive_bind(&self) -> bool {
        self.set.contains(MsFlags::MS_REC)
    }

    /// Returns whether options concern the attributes of a mount.
    #[must_use]
    pub fn has_attributes(&self) -> bool {
        let mut known = ACCESS_TIMES;
        for (flag, _) in ATTRIBUTES {
            known |= flag;
        }
        (self.set | self.cleared).intersects(known)
    }

    /// Returns the attributes to set, without access times.
    #[must_use]
    pub fn set_attributes(&self) -> u64 {
        ATTRIBUTES
            .iter()
            .filter(|(flag, _)| self.set.contains(*flag))
            .fold(0, |all, (_, attribute)| all | attribute)
    }

    /// Returns the change that gives a bind mount exactly the attributes of its options, as with
    /// `mount --bind -o remount`. Attributes that its source has and the options lack are cleared.
    /// Access times stay if no option concerns them.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::default();
        if !self.has_attributes() {
            return attributes;
        }
        for (_, attribute) in ATTRIBUTES {
            attributes.clear |= attribute;
        }
        attributes.set = self.set_attributes();
        if self.set.intersects(ACCESS_TIMES) {
            attributes.clear |= libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;
            attributes.set |= self.access_times();
        }
        attributes
    }

    /// Returns the access times, with mount(2)'s precedence.
    fn access_times(&self) -> u64 {
        let time = if self.set.contains(MsFlags::MS_STRICTATIME) {
            libc::MOUNT_ATTR_STRICTATIME
        } else if self.set.contains(MsFlags::MS_NOATIME) {
            libc::MOUNT_ATTR_NOATIME
        } else {
            libc::MOUNT_ATTR_RELATIME
        };
        if self.set.contains(MsFlags::MS_NODIRATIME) {
            time | libc::MOUNT_ATTR_NODIRATIME
        } else {
            time
        }
    }

    /// Returns the change like [`Self::attributes`] for a mount whose `present` flags are locked,
    /// because it belongs to a more privileged user namespace. The locked flags stay.
    ///
    /// # Errors
    /// The locked flags that the options would change.
    pub fn locked_attributes(&self, present: MsFlags) -> Result<Attributes, MsFlags> {
        let lasting = present & self.cleared;
        if !lasting.is_empty() {
            return Err(lasting);
        }
        let wanted = self.set & ACCESS_TIMES;
        if !wanted.is_empty() && wanted != present & ACCESS_TIMES {
            return Err(present & ACCESS_TIMES);
        }
        Ok(Attributes {
            set: self.attributes().set & !(libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME),
            // The kernel locks all attributes but this one.
            clear: libc::MOUNT_ATTR_NOSYMFOLLOW,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        let names: Vec<_> = names().collect();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn a_later_option_wins() {
        let options = Options::parse(["ro", "rw", "nodev", "rro", "rrw", "size=1k", "acl"]);
        assert_eq!(options.set, MsFlags::MS_NODEV);
        assert_eq!(options.cleared, MsFlags::MS_RDONLY);
        assert_eq!(options.recursive.clear, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.recursive.set, 0);
        assert_eq!(options.data, ["size=1k", "acl"]);
        assert_eq!(Options::parse(["idmap", "ridmap"]).id_mapped, Some(true));
    }

    #[test]
    fn what_a_bind_mount_gets() {
        let none = Options::parse(["rbind", "rprivate", "sync"]);
        assert!(none.is_recursive_bind());
        assert!(none.attributes().is_empty());

        let attributes = Options::parse(["bind", "nosuid", "exec"]).attributes();
        assert_eq!(attributes.set, libc::MOUNT_ATTR_NOSUID);
        assert_ne!(attributes.clear & libc::MOUNT_ATTR_NODEV, 0);
        assert_eq!(attributes.clear & libc::MOUNT_ATTR__ATIME, 0);

        let attributes = Options::parse(["bind", "noatime", "nodiratime"]).attributes();
        let times = libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_NODIRATIME;
        assert_eq!(attributes.set, times);
        assert_ne!(attributes.clear & libc::MOUNT_ATTR__ATIME, 0);
    }

    #[test]
    fn access_times_of_all_mounts_are_replaced() {
        let relative = Options::parse(["rrelatime"]).recursive;
        assert_eq!((relative.set, relative.clear), (0, libc::MOUNT_ATTR__ATIME));
        let directories = Options::parse(["rnodiratime"]).recursive;
        assert_eq!(directories.clear, 0);
    }

    #[test]
    fn locked_flags_stay() {
        let present = MsFlags::MS_NOSUID | MsFlags::MS_RELATIME;
        let options = Options::parse(["bind", "ro", "relatime"]);
        let attributes = options.locked_attributes(present).unwrap();
        assert_eq!(attributes.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(attributes.clear, libc::MOUNT_ATTR_NOSYMFOLLOW);
        let refused = Options::parse(["bind", "suid"]).locked_attributes(present);
        assert_eq!(refused, Err(MsFlags::MS_NOSUID));
        let refused = Options::parse(["bind", "noatime"]).locked_attributes(present);
        assert_eq!(refused, Err(MsFlags::MS_RELATIME));
    }
}
