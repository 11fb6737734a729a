//! Who runs a command, for the operators' log.

use crate::operator_log::Operator;

/// What stands for a name that the system does not tell.
const UNKNOWN: &str = "unknown";

/// The one who runs this command: login name and host, as far as the system tells.
pub(super) fn operator() -> Operator {
    // A container may run under a number that has no name.
    let named = || ["LOGNAME", "USER"].iter().find_map(|name| std::env::var(name).ok());
    let login = whoami::username().ok().or_else(named).unwrap_or_else(|| UNKNOWN.to_owned());
    let host = whoami::hostname().unwrap_or_else(|_| UNKNOWN.to_owned());
    Operator { actor: format!("{login}@{host}"), origin: "cli".to_owned(), request_id: None }
}
