//! SQL that SQLite and PostgreSQL both understand, asked of either.
//!
//! Places for values are `$1`, `$2` and so on; numbers are 64 bits wide. Where the two do differ, the
//! caller asks [`Pool::is_postgres`] and says both.

use sqlx::{
    Database, Decode, Encode, PgConnection, PgPool, Postgres, Row as _, Sqlite, SqliteConnection,
    SqlitePool, Type,
    postgres::{PgQueryResult, PgRow},
    sqlite::{SqliteQueryResult, SqliteRow},
};

use super::begin;

/// Connections to a database.
#[derive(Clone)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// Changes that are made together or not at all; not when it is dropped.
pub(crate) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

/// Something to ask of a database.
pub(crate) struct Query {
    sql: &'static str,
    values: Vec<Value>,
}

/// A value in a query.
pub(crate) enum Value {
    Integer(Option<i64>),
    Text(String),
    Bytes(Option<Vec<u8>>),
    Truth(bool),
}

/// A row of an answer.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What can be asked: a pool, or a transaction on one connection.
pub(crate) enum Source<'c> {
    SqlitePool(&'c SqlitePool),
    PostgresPool(&'c PgPool),
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

/// A query without values yet.
pub(crate) fn query(sql: &'static str) -> Query {
    Query {
        sql,
        values: Vec::new(),
    }
}

/// What a column's value can be read as.
pub(crate) trait Readable:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl<T> Readable for T where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl Pool {
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Begins a transaction with a statement for each kind of database.
    pub(crate) async fn begin(
        &self,
        sqlite: &'static str,
        postgres: &'static str,
    ) -> Result<Transaction, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => Transaction::Sqlite(pool.begin_with(sqlite).await?),
            Self::Postgres(pool) => Transaction::Postgres(begin(pool, postgres).await?),
        })
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Transaction {
    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
    }
}

/// Runs a query with one of `sqlx`'s methods, and gives what comes of it to `$sqlite` or `$postgres`.
macro_rules! run {
    ($query:expr, $source:expr, $method:ident, $sqlite:expr, $postgres:expr) => {
        match $source.into() {
            Source::SqlitePool(it) => $sqlite($query.prepare::<Sqlite>().$method(it).await?),
            Source::Sqlite(it) => $sqlite($query.prepare::<Sqlite>().$method(it).await?),
            Source::PostgresPool(it) => $postgres($query.prepare::<Postgres>().$method(it).await?),
            Source::Postgres(it) => $postgres($query.prepare::<Postgres>().$method(it).await?),
        }
    };
}

impl Query {
    /// Gives the next place its value.
    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it; how many rows it changed.
    pub(crate) async fn execute(self, source: impl Into<Source<'_>>) -> Result<u64, sqlx::Error> {
        let sqlite = |done: SqliteQueryResult| done.rows_affected();
        let postgres = |done: PgQueryResult| done.rows_affected();
        Ok(run!(self, source, execute, sqlite, postgres))
    }

    /// Every row.
    pub(crate) async fn all(self, source: impl Into<Source<'_>>) -> Result<Vec<Row>, sqlx::Error> {
        let sqlite = |rows: Vec<_>| rows.into_iter().map(Row::Sqlite).collect();
        let postgres = |rows: Vec<_>| rows.into_iter().map(Row::Postgres).collect();
        Ok(run!(self, source, fetch_all, sqlite, postgres))
    }

    /// The first row, which is there.
    pub(crate) async fn one(self, source: impl Into<Source<'_>>) -> Result<Row, sqlx::Error> {
        Ok(run!(self, source, fetch_one, Row::Sqlite, Row::Postgres))
    }

    /// The first row, if there is one.
    pub(crate) async fn optional(
        self,
        source: impl Into<Source<'_>>,
    ) -> Result<Option<Row>, sqlx::Error> {
        let sqlite = |row: Option<_>| row.map(Row::Sqlite);
        let postgres = |row: Option<_>| row.map(Row::Postgres);
        Ok(run!(self, source, fetch_optional, sqlite, postgres))
    }

    /// The first column of every row.
    pub(crate) async fn column<T: Readable>(
        self,
        source: impl Into<Source<'_>>,
    ) -> Result<Vec<T>, sqlx::Error> {
        self.all(source)
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect()
    }

    /// The first column of the first row, if there is one.
    pub(crate) async fn value<T: Readable>(
        self,
        source: impl Into<Source<'_>>,
    ) -> Result<Option<T>, sqlx::Error> {
        let row = self.optional(source).await?;
        row.map(|row| row.get(0)).transpose()
    }

    fn prepare<DB>(self) -> sqlx::query::Query<'static, DB, <DB as Database>::Arguments>
    where
        DB: Database,
        Option<i64>: Encode<'static, DB> + Type<DB>,
        String: Encode<'static, DB> + Type<DB>,
        Option<Vec<u8>>: Encode<'static, DB> + Type<DB>,
        bool: Encode<'static, DB> + Type<DB>,
    {
        self.values
            .into_iter()
            .fold(sqlx::query(self.sql), |query, value| match value {
                Value::Integer(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
                Value::Truth(value) => query.bind(value),
            })
    }
}

impl Row {
    /// The value of a column, counted from 0.
    pub(crate) fn get<T: Readable>(&self, column: usize) -> Result<T, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    /// A number that is never negative.
    pub(crate) fn number(&self, column: usize) -> Result<u64, sqlx::Error> {
        self.get::<i64>(column).map(i64::cast_unsigned)
    }
}

impl<'c> From<&'c Pool> for Source<'c> {
    fn from(pool: &'c Pool) -> Self {
        match pool {
            Pool::Sqlite(pool) => Self::SqlitePool(pool),
            Pool::Postgres(pool) => Self::PostgresPool(pool),
        }
    }
}

impl<'c> From<&'c mut Transaction> for Source<'c> {
    fn from(transaction: &'c mut Transaction) -> Self {
        match transaction {
            Transaction::Sqlite(transaction) => Self::Sqlite(&mut *transaction),
            Transaction::Postgres(transaction) => Self::Postgres(&mut *transaction),
        }
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Integer(Some(value.cast_signed()))
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(Some(value))
    }
}

impl From<Option<u64>> for Value {
    fn from(value: Option<u64>) -> Self {
        Self::Integer(value.map(u64::cast_signed))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(Some(value.to_owned()))
    }
}

impl From<Option<Vec<u8>>> for Value {
    fn from(value: Option<Vec<u8>>) -> Self {
        Self::Bytes(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Truth(value)
    }
}
