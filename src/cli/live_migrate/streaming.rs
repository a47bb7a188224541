//! Flags for the transfer of images and root file system over the network, if the ends do not share
//! them.

use std::sync::Arc;

use clap::ValueEnum;

use crate::migrate::limits::MAX_STREAMS;
use crate::migrate::transfer::images::{self, RateLimit};
use crate::migrate::wire::rootfs::RootfsWish;

/// Largest default number of connections. More of them are not faster and cost memory.
const DEFAULT_STREAMS: usize = 4;

/// Values of `--compress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compress {
    /// Compress if that proves faster during the transfer
    Auto,
    /// Do not compress
    None,
    /// Zstandard
    Zstd,
    /// gzip
    Gzip,
}

/// Values of `--rootfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rootfs {
    /// Shared if both ends see the same tree; else diff if the destination has another tree there;
    /// else full
    Auto,
    /// Require that both ends see the same tree
    Shared,
    /// Copy the tree and config.json, even if the destination has a tree there
    Full,
    /// Copy only the differences to the tree that the destination has there
    Diff,
    /// Copy and check nothing: the destination must have all files that the container needs
    None,
}

#[derive(Debug, clap::Args)]
#[command(
    next_help_heading = "Source, if the hosts do not share the image store or the root file system"
)]
#[group(id = "streaming-flags", multiple = true, requires = "destination")]
pub struct StreamingArgs {
    /// Number of connections for the images [default: number of processors, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_STREAMS)))]
    streams: Option<u32>,
    /// Transfer of the root file system
    #[arg(long, value_name = "WAY", value_enum, default_value = "auto")]
    rootfs: Rootfs,
    /// Compression of images and root file system during the transfer
    #[arg(long, value_name = "WAY", value_enum, default_value = "auto")]
    compress: Compress,
    /// Bandwidth limit for images and root file system, such as 100MB/s or 1GiB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bandwidth: Option<u64>,
}

impl StreamingArgs {
    pub fn streams(&self) -> u32 {
        self.streams.unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            processors.min(DEFAULT_STREAMS) as u32
        })
    }

    pub fn rootfs(&self) -> RootfsWish {
        match self.rootfs {
            Rootfs::Auto => RootfsWish::Auto,
            Rootfs::Shared => RootfsWish::Shared,
            Rootfs::Full => RootfsWish::Full,
            Rootfs::Diff => RootfsWish::Diff,
            Rootfs::None => RootfsWish::None,
        }
    }

    pub fn settings(&self) -> images::ImageSettings {
        images::ImageSettings {
            compression: match self.compress {
                Compress::Auto => images::Compression::Auto,
                Compress::None => images::Compression::None,
                Compress::Zstd => images::Compression::Zstd,
                Compress::Gzip => images::Compression::Gzip,
            },
            rate_limit: self.bandwidth.map(|rate| Arc::new(RateLimit::new(rate))),
        }
    }
}

/// Reads a rate in bytes: "100MB/s", "1GiB/s", "12.5M" or a plain number. "/s" may be left out.
fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a rate such as 100MB/s, 1GiB/s or 500KB/s");
    let rate = text.strip_suffix("/s").unwrap_or(text).trim();
    let digits = rate
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rate.len());
    let (number, unit) = rate.split_at(digits);
    let scale = match unit {
        "" | "B" => 1.0,
        "K" | "kB" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * scale;
    // The range excludes NaN and numbers too large for a u64. With less than a byte a second the
    // transfer never ends.
    match (1.0..1e18).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(parse_rate("100MB/s"), Ok(100_000_000));
        assert_eq!(parse_rate("1GiB/s"), Ok(1 << 30));
        assert_eq!(parse_rate("12.5M"), Ok(12_500_000));
        assert_eq!(parse_rate("4096"), Ok(4096));
        for bad in [
            "", "MB/s", "0", "-1", "1e400", "100Mbit", "1..2M", "0.1", "9e99",
        ] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
