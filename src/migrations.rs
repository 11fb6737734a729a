//! The schemas of the databases, from the files in `migrations`. The library's own macro reads a folder, but
//! builds both databases once more, for the compiler.

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Name and text of each file in a folder, in the order of their numbers, which begin with 1.
macro_rules! files {
    ($folder:literal: $($name:literal),*) => {
        &[$(($name, include_str!(concat!("../migrations/", $folder, "/", $name, ".sql")))),*]
    };
}

const POSTGRES: &[(&str, &str)] = files!("postgres": "0001_ledger", "0002_operator_log", "0003_shards", "0004_pause", "0005_restored", "0006_archive", "0007_webhooks");
const SQLITE: &[(&str, &str)] = files!("sqlite": "0001_ledger", "0002_queue", "0003_operator_log", "0004_event_batches", "0005_pause", "0006_archive", "0007_webhooks");

/// The version of the ledger's schema on PostgreSQL: how many files there are.
pub(crate) fn postgres_version() -> i32 {
    i32::try_from(POSTGRES.len()).unwrap_or(i32::MAX)
}

/// Of the ledger on PostgreSQL.
pub(crate) fn postgres() -> Migrator {
    migrator(POSTGRES)
}

/// Of the file of an embedded deployment.
pub(crate) fn sqlite() -> Migrator {
    migrator(SQLITE)
}

fn migrator(files: &'static [(&str, &str)]) -> Migrator {
    let migrations = (1..).zip(files).map(|(version, (name, sql))| {
        let description = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
        let description = description.replace('_', " ").into();
        Migration::new(version, description, MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(migrations.collect())
}

#[cfg(test)]
mod tests {
    use super::{POSTGRES, SQLITE};

    #[test]
    fn every_file_is_in_its_list_under_its_number() {
        for (folder, files) in [("postgres", POSTGRES), ("sqlite", SQLITE)] {
            let path = format!("{}/migrations/{folder}", env!("CARGO_MANIFEST_DIR"));
            let found = std::fs::read_dir(path).unwrap();
            let mut found: Vec<_> =
                found.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
            found.sort();
            let listed: Vec<_> = files.iter().map(|(name, _)| format!("{name}.sql")).collect();
            assert_eq!(listed, found, "{folder}");
            for (version, (name, _)) in (1..).zip(files) {
                assert!(name.starts_with(&format!("{version:04}_")), "{name}");
            }
        }
    }

    #[test]
    fn the_newest_file_says_which_version_the_schema_has() {
        let (name, sql) = POSTGRES.last().unwrap();
        let version = super::postgres_version();
        let forms = [format!("values ({version}, "), format!("set version = {version}")];
        assert!(forms.iter().any(|form| sql.contains(form)), "{name}");
    }
}
