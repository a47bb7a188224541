//! CRIU: the session that rcm has with it, and the verbs `checkpoint` and `restore`.

mod checkpoint;
mod lazy;
mod session;
