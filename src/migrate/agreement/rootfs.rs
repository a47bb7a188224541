//! Way of the root file system to the destination. The source asks for one, and the destination
//! decides, because it knows the tree that it has.

use crate::migrate::wire::rootfs::{RootfsOffer, RootfsPlan, RootfsWay, RootfsWish};

use super::local::{Local, RootfsFound};
use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::id::Side;
use crate::text::bytes;

/// Decides how the root file system gets to the destination.
#[must_use]
pub fn plan(offer: &RootfsOffer, found: &RootfsFound, has_tree: bool) -> RootfsPlan {
    let (way, why) = match offer.wish {
        RootfsWish::None => (RootfsWay::None, "asked for"),
        _ if found.sees_probe => (RootfsWay::Shared, "both ends see the same tree"),
        RootfsWish::Shared => (RootfsWay::Shared, "asked for"),
        RootfsWish::Full => (RootfsWay::Full, "asked for"),
        RootfsWish::Diff if has_tree => (RootfsWay::Diff, "asked for"),
        RootfsWish::Auto if has_tree => (RootfsWay::Diff, "the destination has another tree there"),
        RootfsWish::Auto | RootfsWish::Diff => {
            (RootfsWay::Full, "the destination has no tree there")
        }
    };
    RootfsPlan {
        way,
        why: why.into(),
    }
}

/// Adds the findings about the root file system.
pub(crate) fn judge(offer: &RootfsOffer, local: &Local, findings: &mut Vec<Finding>) {
    let found = &local.rootfs_found;
    let place = local.rootfs.display();
    let mut error = |what: String, remedy: &str| {
        findings.push(Finding::error(Side::Destination, what, remedy));
    };
    // A tree that the source cannot write to has no probe file. Then the operator's request is
    // trusted.
    if local.rootfs_plan.way == RootfsWay::Shared
        && local.rootfs_exists
        && offer.nonce.is_some()
        && !found.sees_probe
    {
        error(
            format!("{place} is not the tree of the source"),
            "mount the same tree there, or use --rootfs=auto at the source",
        );
    }
    if !local.rootfs_plan.way.copies() {
        return;
    }
    if found.is_mount_point {
        error(
            format!("{place} is a mount point, and the copied tree must be renamed to this path"),
            "unmount it, start the receiver with another --bundle, or bring the tree there and use --rootfs=none at the source",
        );
    }
    if let Some(pid) = found.used_by {
        error(
            format!("{place} is the root of process {pid}, and would be replaced"),
            "start the receiver with another --bundle, or end that process",
        );
    }
    let needed_bytes = offer
        .size_bytes
        .unwrap_or(0)
        .saturating_sub(match local.rootfs_plan.way {
            RootfsWay::Diff => found.size_bytes,
            _ => 0,
        });
    if let Some(free_bytes) = found.free_bytes
        && free_bytes < needed_bytes
    {
        error(
            format!(
                "the root file system needs about {} at {place}, and {} are left there",
                bytes(needed_bytes),
                bytes(free_bytes)
            ),
            "free space there, or start the receiver with another --bundle",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(wish: RootfsWish, sees_probe: bool, has_tree: bool) -> RootfsWay {
        let offer = RootfsOffer {
            wish,
            nonce: Some("probe".into()),
            size_bytes: None,
        };
        let found = RootfsFound {
            sees_probe,
            ..RootfsFound::default()
        };
        plan(&offer, &found, has_tree).way
    }

    #[test]
    fn the_present_tree_decides() {
        use RootfsWay as Way;
        use RootfsWish::*;
        for (wish, same, other, nothing) in [
            (Auto, Way::Shared, Way::Diff, Way::Full),
            (Shared, Way::Shared, Way::Shared, Way::Shared),
            (Full, Way::Shared, Way::Full, Way::Full),
            (Diff, Way::Shared, Way::Diff, Way::Full),
            (None, Way::None, Way::None, Way::None),
        ] {
            assert_eq!(way(wish, true, true), same, "{wish:?}");
            assert_eq!(way(wish, false, true), other, "{wish:?}");
            assert_eq!(way(wish, false, false), nothing, "{wish:?}");
        }
    }

    fn findings(offer: &RootfsOffer, local: &Local) -> String {
        let mut findings = Vec::new();
        judge(offer, local, &mut findings);
        findings
            .iter()
            .map(|finding| format!("{finding}\n"))
            .collect()
    }

    #[test]
    fn obstacles_are_found() {
        let mut local = Local {
            rootfs: "/b/rootfs".into(),
            rootfs_exists: true,
            ..Local::default()
        };
        local.rootfs_plan.way = RootfsWay::Shared;
        let mut offer = RootfsOffer {
            wish: RootfsWish::Shared,
            nonce: Some("probe".into()),
            size_bytes: Some(5 << 30),
        };
        assert!(findings(&offer, &local).contains("is not the tree of the source"));
        offer.nonce = None;
        assert_eq!(findings(&offer, &local), "");
        local.rootfs_plan.way = RootfsWay::Full;
        assert_eq!(findings(&offer, &local), "");
        local.rootfs_found = RootfsFound {
            sees_probe: false,
            is_mount_point: true,
            used_by: Some(7),
            free_bytes: Some(1 << 30),
            size_bytes: 4 << 30,
        };
        let found = findings(&offer, &local);
        for part in ["mount point", "process 7", "needs about 5.0 GiB"] {
            assert!(found.contains(part), "{found}");
        }
        // A diff needs space for the changes only.
        local.rootfs_plan.way = RootfsWay::Diff;
        assert!(!findings(&offer, &local).contains("needs about"));
    }
}
