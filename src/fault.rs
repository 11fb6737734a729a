//! Places where a test may end the process, to see that nothing is lost. Release builds have none.

/// Ends the process on the spot, as `kill -9` would, when fail point `name` returns.
#[allow(unused_variables, reason = "unused where the library is built without fail points")]
pub fn crash_point(name: &str) {
    fail::fail_point!(name, |_| -> () { std::process::abort() });
}
