//! The table: its columns, what makes it, and whether one that is there will do. Pure.

use tokio_postgres::types::Type;

use crate::job::{LEDGER, Postgres};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// Whatever JSON a step answers.
    Json,
    /// A vector.
    Vector,
    /// A number of a run.
    Integer,
    /// A moment.
    Time,
}

impl Kind {
    /// The type of a column that is made, and after it those that will do: Postgres turns the first one
    /// into each of the others by itself.
    fn types(self) -> &'static [&'static str] {
        match self {
            Kind::Text => &["text", "character varying"],
            Kind::Json => &["jsonb", "json"],
            // The last two are those of the extension pgvector.
            Kind::Vector => &["real[]", "double precision[]", "vector", "halfvec"],
            Kind::Integer => &["integer", "bigint"],
            Kind::Time => &["timestamp with time zone"],
        }
    }

    fn wire_type(self) -> Type {
        match self {
            Kind::Text => Type::TEXT,
            Kind::Json => Type::JSONB,
            Kind::Vector => Type::FLOAT4_ARRAY,
            Kind::Integer => Type::INT4,
            Kind::Time => Type::TIMESTAMPTZ,
        }
    }
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
}

/// A column as the database has it.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its type, in the words of `format_type`.
    pub type_name: String,
    /// Whether it must have a value and has none by itself.
    pub is_required: bool,
}

/// The table of a job.
#[derive(Debug, Clone)]
pub struct Table {
    name: String,
    quoted: String,
    ledger: String,
    columns: Vec<Column>,
}

/// What the rows are gathered in before they go into the table.
const STAGE: &str = "pg_temp.millrace_stage";

/// The column that tells rows apart.
const KEY: &str = "row_key";

/// The column that the database fills.
const LOADED_AT: &str = "loaded_at";

impl Table {
    /// The table of a job.
    pub fn new(asked: &Postgres) -> Self {
        let column = |name: &str, kind| Column {
            name: name.to_owned(),
            kind,
        };
        let mut columns = vec![column(KEY, Kind::Text), column("id", Kind::Text)];
        columns.extend(asked.steps.iter().map(|step| match step.is_vector {
            true => column(&step.name, Kind::Vector),
            false => column(&step.name, Kind::Json),
        }));
        if asked.has_input {
            columns.push(column("input", Kind::Json));
        }
        columns.extend([
            column("error_code", Kind::Text),
            column("error_message", Kind::Text),
            column("output", Kind::Text),
            column("run", Kind::Integer),
            column(LOADED_AT, Kind::Time),
        ]);
        let below = |table: &str| match &asked.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(table)),
            None => quoted(table),
        };
        Self {
            name: asked.name(),
            quoted: below(&asked.table),
            ledger: below(LEDGER),
            columns,
        }
    }

    /// The table's name as the job says it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table's name as `to_regclass` takes it.
    pub fn quoted(&self) -> &str {
        &self.quoted
    }

    /// The same of the table in which is noted what is loaded.
    pub fn ledger(&self) -> &str {
        &self.ledger
    }

    /// The columns that rows bring, in the order in which they bring them.
    pub fn loaded(&self) -> &[Column] {
        &self.columns[..self.columns.len() - 1]
    }

    /// The types of [`Table::loaded`], as they travel.
    pub fn wire_types(&self) -> Vec<Type> {
        let kinds = self.loaded().iter().map(|column| column.kind);
        kinds.map(Kind::wire_type).collect()
    }

    /// Makes the table.
    pub fn create(&self) -> String {
        let columns = self.columns.iter().map(|Column { name, kind }| {
            let made = kind.types()[0];
            match name.as_str() {
                KEY => format!("{KEY} {made} primary key"),
                LOADED_AT => format!("{LOADED_AT} {made} not null default now()"),
                "output" | "run" => format!("{} {made} not null", quoted(name)),
                _ => format!("{} {made}", quoted(name)),
            }
        });
        let columns: Vec<String> = columns.collect();
        format!("create table {} ({})", self.quoted, columns.join(", "))
    }

    /// Makes the table in which is noted what is loaded.
    pub fn create_ledger(&self) -> String {
        format!(
            "create table {} (table_name text, output text, file text, \
             rows bigint not null default 0, whole boolean not null default false, \
             loaded_at timestamp with time zone not null default now(), \
             primary key (table_name, output, file))",
            self.ledger
        )
    }

    /// Forgets what was loaded into a table that is there no more. Takes the table's name.
    pub fn forget(&self) -> String {
        format!("delete from {} where table_name = $1", self.ledger)
    }

    /// The files that are loaded, each with its rows and whether that is all of it. Takes the table's
    /// name and the output.
    pub fn noted(&self) -> String {
        format!(
            "select file, rows, whole from {} where table_name = $1 and output = $2",
            self.ledger
        )
    }

    /// Begins the notes of files. Takes the table's name, the output and the files. Here and in
    /// [`Table::note_held`] the order keeps two that load the same files from waiting for each other.
    pub fn note_begun(&self) -> String {
        format!(
            "insert into {} (table_name, output, file) \
             select $1::text, $2::text, file from unnest($3::text[]) as file order by file on conflict do nothing",
            self.ledger
        )
    }

    /// The files, and how many rows of each are loaded, which nobody else changes until the transaction
    /// ends. Takes the same.
    pub fn note_held(&self) -> String {
        format!(
            "select file, rows from {} where table_name = $1 and output = $2 \
             and file = any($3::text[]) order by file for update",
            self.ledger
        )
    }

    /// Notes how many rows of each file are loaded and whether that is all of it. Takes the same, and
    /// these two in the files' order.
    pub fn note(&self) -> String {
        format!(
            "update {} as held set rows = noted.rows, whole = held.whole or noted.whole, loaded_at = now() \
             from unnest($3::text[], $4::bigint[], $5::boolean[]) as noted (file, rows, whole) \
             where held.table_name = $1 and held.output = $2 and held.file = noted.file",
            self.ledger
        )
    }

    /// Makes what rows are gathered in, for one transaction: no state of a connection outlives that.
    pub fn create_stage(&self) -> String {
        let columns = self.loaded().iter();
        let columns: Vec<String> = columns
            .map(|column| format!("{} {}", quoted(&column.name), column.kind.types()[0]))
            .collect();
        format!(
            "create temporary table {STAGE} ({}) on commit drop",
            columns.join(", ")
        )
    }

    /// Takes rows into the stage.
    pub fn copy(&self) -> String {
        format!("copy {STAGE} from stdin binary")
    }

    /// Moves the stage's rows into the table. A row that is there already stays, unless it was made by
    /// an earlier run of the same output, or for another output. The order keeps two that load the same
    /// rows from waiting for each other.
    pub fn insert(&self) -> String {
        let names: Vec<String> = (self.loaded().iter())
            .map(|column| quoted(&column.name))
            .collect();
        let names = names.join(", ");
        let updates: Vec<String> = (self.loaded().iter())
            .filter(|column| column.name != KEY)
            .map(|column| format!("{0} = excluded.{0}", quoted(&column.name)))
            .collect();
        let updates = updates.join(", ");
        format!(
            "insert into {} as held ({names}) select {names} from {STAGE} order by {KEY} \
             on conflict ({KEY}) do update set {updates}, {LOADED_AT} = now() \
             where held.output <> excluded.output or held.run < excluded.run",
            self.quoted
        )
    }

    /// Why a table that is there will not do; `None` if it will.
    pub fn misfit(&self, found: &[Found], key_is_unique: bool) -> Option<String> {
        for Column { name, kind } in &self.columns {
            let types = kind.types();
            let Some(there) = found.iter().find(|there| there.name == *name) else {
                return Some(format!("it has no column {name:?} of type {}", types[0]));
            };
            if !types.contains(&there.type_name.as_str()) {
                let type_name = &there.type_name;
                return Some(format!(
                    "its column {name:?} is of type {type_name}, where results need {}",
                    types[0]
                ));
            }
        }
        let is_ours = |name: &str| self.columns.iter().any(|column| column.name == name);
        let required = found.iter().find(|it| it.is_required && !is_ours(&it.name));
        if let Some(Found { name, .. }) = required {
            return Some(format!(
                "its column {name:?} must not be null and has no default, and no result says what it \
                 should be"
            ));
        }
        if !key_is_unique {
            return Some(format!(
                "its column {KEY:?} is not unique by itself: add a primary key over it"
            ));
        }
        None
    }
}

/// The columns of the table $1.
pub const COLUMNS: &str = "select attname::text, format_type(atttypid, null), \
     attnotnull and not atthasdef and attidentity = '' from pg_attribute \
     where attrelid = to_regclass($1) and attnum > 0 and not attisdropped";

/// Whether rows of the table $1 can be told apart by their key.
pub const KEY_IS_UNIQUE: &str = "select exists (select from pg_index \
     join pg_attribute on attrelid = indrelid and attnum = indkey[0] \
     where indrelid = to_regclass($1) and attname = 'row_key' and indnkeyatts = 1 \
     and indisunique and indimmediate and indisvalid and indpred is null)";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use millrace_crds::SecretKeyRef;

    use super::*;
    use crate::job::{OWN_COLUMNS, StepColumn};

    fn table() -> Table {
        let step = |name: &str, is_vector| StepColumn {
            name: name.to_owned(),
            is_vector,
        };
        Table::new(&Postgres {
            secret: SecretKeyRef {
                name: "db".to_owned(),
                key: None,
            },
            schema: Some("nlp".to_owned()),
            table: "Texts".to_owned(),
            steps: vec![step("mood", false), step("e.5", true)],
            has_input: true,
        })
    }

    fn as_made() -> Vec<Found> {
        let columns = table().columns.into_iter();
        let found = columns.map(|column| Found {
            name: column.name,
            type_name: column.kind.types()[0].to_owned(),
            is_required: false,
        });
        found.collect()
    }

    #[test]
    fn every_column_that_is_no_steps_is_among_those_no_step_may_be_called_like() {
        let table = table();
        let names = table.columns.iter().map(|column| column.name.as_str());
        let own: Vec<&str> = names
            .filter(|name| !["mood", "e.5"].contains(name))
            .collect();
        assert_eq!(own, OWN_COLUMNS);
    }

    #[test]
    fn a_table_that_will_not_do_is_told_by_column_and_both_types() {
        let check = |change: fn(&mut Vec<Found>), unique, words: &[&str]| {
            let mut found = as_made();
            change(&mut found);
            let misfit = table().misfit(&found, unique).expect("it will not do");
            assert!(words.iter().all(|word| misfit.contains(word)), "{misfit}");
        };
        assert_eq!(table().misfit(&as_made(), true), None);
        check(
            |found| found[2].type_name = "text".into(),
            true,
            &["\"mood\"", "text", "jsonb"],
        );
        check(|found| drop(found.remove(3)), true, &["\"e.5\"", "real[]"]);
        check(|_| (), false, &["\"row_key\"", "primary key"]);
        let add = |found: &mut Vec<Found>| {
            found.push(Found {
                name: "owner".into(),
                type_name: "text".into(),
                is_required: true,
            });
        };
        check(add, true, &["\"owner\"", "null"]);
    }
}
