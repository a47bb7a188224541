//! Extended attributes (xattr(7)) of files. Symbolic links in a path are followed.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;

/// The kernel's limit for the list of names and for one value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`
/// of linux/limits.h).
pub const MAX_BYTES: usize = 64 << 10;

/// Returns the names of all attributes, in no particular order; none if the file system has no
/// attributes.
///
/// # Errors
/// As listxattr(2), except `ENOTSUP`.
pub fn names(path: &CStr) -> io::Result<Vec<CString>> {
    // Most files have none: ask for the size first instead of holding the largest buffer for each.
    // SAFETY: `path` ends with a NUL; a size of 0 makes the kernel write nothing.
    let size = unsafe { libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0) };
    let size = match usize::try_from(size) {
        Ok(0) => return Ok(Vec::new()),
        Ok(_) => MAX_BYTES,
        Err(_) => {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENOTSUP) => Ok(Vec::new()),
                _ => Err(error),
            };
        }
    };
    let mut list = vec![0_u8; size];
    // SAFETY: `path` ends with a NUL and the kernel writes at most `size` bytes, the length of
    // `list`.
    let length = unsafe { libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), size) };
    list.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    Ok(list
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .map(CStr::to_owned)
        .collect())
}

/// Returns the value of an attribute.
///
/// # Errors
/// As getxattr(2): `ENODATA` if it does not exist.
pub fn get(path: &CStr, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; MAX_BYTES];
    // SAFETY: both strings end with a NUL and the kernel writes at most `MAX_BYTES` bytes, the
    // length of `value`.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    value.shrink_to_fit();
    Ok(value)
}

/// Creates or replaces an attribute.
///
/// # Errors
/// As setxattr(2).
pub fn set(path: &CStr, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: both strings end with a NUL and the kernel reads `value.len()` bytes of `value`.
    let done = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Removes an attribute.
///
/// # Errors
/// As removexattr(2).
pub fn remove(path: &CStr, name: &CStr) -> io::Result<()> {
    // SAFETY: both strings end with a NUL.
    match unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn an_attribute_comes_and_goes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
        let name = c"user.rcm";
        if let Err(error) = set(&path, name, b"\0value\xff") {
            // A tmpfs of an old kernel has no user attributes.
            assert_eq!(error.raw_os_error(), Some(libc::ENOTSUP));
            return;
        }
        assert!(names(&path).unwrap().iter().any(|found| **found == *name));
        assert_eq!(get(&path, name).unwrap(), b"\0value\xff");
        remove(&path, name).unwrap();
        let error = get(&path, name).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODATA));
        assert!(!names(&path).unwrap().iter().any(|found| **found == *name));
    }
}
