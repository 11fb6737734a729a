//! Whether a database is one that this version can work on.

use super::{PostgresLedger, distributed, permanent};
use crate::ledger::LedgerError;
use crate::migrations;

/// What a ledger of version 0.1 has to be told.
pub(super) const OTHER_VERSION: &str = "the database has the ledger of floodgate 0.1, which knows orders by \
    their order id alone; drain 0.1 and give this version another database (see CHANGELOG.md)";

/// What [`PostgresLedger::check`] looks at.
type Found = (i64, i64, bool, String, String, bool);

impl PostgresLedger {
    /// Fails unless the database can be reached, has this version's schema, and keeps what it has
    /// confirmed when it crashes.
    pub async fn check(&self) -> Result<(), LedgerError> {
        let (columns, versions, has_schema, fsync, synchronous, is_distributed): Found = self
            .run(async |db| {
                let is_distributed = distributed::is_distributed(db, "decisions").await?;
                let found = sqlx::query_as(
                    "select count(*), count(*) filter (where attname = 'version'),
                            to_regclass('ledger_schema') is not null,
                            current_setting('fsync'), current_setting('synchronous_commit'), $1::boolean
                     from pg_attribute where attrelid = to_regclass('decisions')",
                );
                found.bind(is_distributed).fetch_one(db).await
            })
            .await?;
        if columns == 0 {
            return Err(permanent("the database has no ledger yet; run: floodgate migrate"));
        }
        if versions == 0 {
            return Err(permanent(OTHER_VERSION));
        }
        let known = migrations::postgres_version();
        let (version, usable_from): (i32, i32) = if has_schema {
            let schema = "select version, usable_from from ledger_schema";
            self.run(async |db| sqlx::query_as(schema).fetch_one(db).await).await?
        } else {
            (0, 0)
        };
        if version < known {
            return Err(permanent("the ledger's schema is an older one; run: floodgate migrate"));
        }
        if usable_from > known {
            return Err(permanent(
                "the ledger's schema is one of a newer version, which this one can't work on; start that one",
            ));
        }
        if is_distributed && !self.distributed {
            let problem = "the ledger's tables are distributed, which needs ledger.distributed = true \
                (FLOODGATE_LEDGER__DISTRIBUTED)";
            return Err(permanent(problem));
        }
        for (setting, value) in [("fsync", fsync), ("synchronous_commit", synchronous)] {
            if value == "off" {
                let problem = format!(
                    "{setting} is off: PostgreSQL would lose decisions in a crash that it had \
                     confirmed; turn it on for this database"
                );
                return Err(permanent(problem));
            }
        }
        Ok(())
    }

    /// The version of the server.
    pub async fn version(&self) -> Result<String, LedgerError> {
        let version = "select current_setting('server_version')";
        self.run(async |db| sqlx::query_scalar(version).fetch_one(db).await).await
    }

    /// The privileges that worker and API need and this user does not have: tables, and what may not be done to
    /// them.
    pub async fn missing_privileges(&self) -> Result<Vec<(String, String)>, LedgerError> {
        let missing = "select t, p from (values
                ('sales', 'select'), ('sales', 'insert'), ('sales', 'update'),
                ('decisions', 'select'), ('decisions', 'insert'),
                ('buyers', 'select'), ('buyers', 'insert'), ('buyers', 'update'),
                ('announcements', 'select'), ('announcements', 'insert'), ('announcements', 'update'),
                ('operator_log', 'select'), ('operator_log', 'insert'),
                ('webhooks', 'select'), ('webhooks', 'insert'), ('webhooks', 'update'), ('webhooks', 'delete'),
                ('webhook_deliveries', 'select'), ('webhook_deliveries', 'insert'),
                ('webhook_deliveries', 'update'), ('webhook_deliveries', 'delete'),
                ('division', 'select'), ('division', 'update'),
                ('workers', 'select'), ('workers', 'insert'), ('workers', 'update'), ('workers', 'delete'),
                ('archived_orders', 'select'), ('archives', 'select'), ('erased_buyers', 'select')
            ) needed (t, p) where not has_table_privilege(t, p)";
        self.run(async |db| sqlx::query_as(missing).fetch_all(db).await).await
    }
}
