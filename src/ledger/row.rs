//! Rows as structs. The library's own macro does the same, but builds both databases once more, for the
//! compiler.

/// A struct that is read from a row of either database, each field from the column of its name. A field
/// `name: Type as Stored` is converted from what the column holds.
macro_rules! row {
    ($(#[$meta:meta])* $visible:vis struct $Row:ident {
        $($field:ident: $Type:ty $(as $Stored:ty)?,)*
    }) => {
        $(#[$meta])*
        $visible struct $Row {
            $($field: $Type,)*
        }

        impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for $Row
        where
            &'static str: sqlx::ColumnIndex<R>,
            $($crate::ledger::row::stored!($Type $(, $Stored)?):
                sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,)*
        {
            fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
                $(let $field: $crate::ledger::row::stored!($Type $(, $Stored)?) =
                    row.try_get(stringify!($field))?;)*
                Ok(Self { $(
                    $field: $field.try_into().map_err(|error| sqlx::Error::ColumnDecode {
                        index: stringify!($field).to_owned(),
                        source: Box::new(error),
                    })?,
                )* })
            }
        }
    };
}

/// What a column of type `Type` holds.
macro_rules! stored {
    ($Type:ty) => {
        $Type
    };
    ($Type:ty, $Stored:ty) => {
        $Stored
    };
}

pub(super) use {row, stored};
