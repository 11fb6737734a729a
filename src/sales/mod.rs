//! Sales beside the path of orders: what a process knows of them, what operators do to them, and what subscribers
//! are told of them.

pub mod announce;
pub mod archive_file;
pub mod cache;
pub mod operations;
