//! Who was heard of by any of the masters that share a server. Times are by the server's clock: those of
//! masters may differ.

use std::time::Duration;

use sqlx::Row as _;
use wavry_proto::id::{Epoch, NodeId};

use super::{Error, Store};
use crate::{
    database::sql::Pool,
    presence::{Known, Report},
};

impl Store {
    /// Tells the other masters how long ago nodes were heard here, and what those told; gives what all
    /// masters know of every node. `None` where there are no others.
    pub(crate) async fn share(
        &self,
        heard: &[(NodeId, Duration, Report)],
    ) -> Result<Option<Vec<Known>>, Error> {
        let Pool::Postgres(pool) = &self.pool else {
            return Ok(None);
        };
        if !heard.is_empty() {
            let each = || heard.iter();
            let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            // In one order everywhere, so that masters do not wait for each other in a circle.
            sqlx::query(
                "INSERT INTO node_presence (node, heard_at, sessions, epoch, version, seen_from)
                 SELECT told.node, (extract(epoch FROM clock_timestamp()) * 1000)::bigint - told.ago,
                     told.sessions, told.epoch, told.version, told.seen_from
                 FROM UNNEST ($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[])
                     AS told (node, ago, sessions, epoch, version, seen_from)
                 JOIN node ON node.id = told.node ORDER BY told.node
                 ON CONFLICT (node) DO UPDATE SET heard_at = excluded.heard_at,
                     sessions = excluded.sessions, epoch = excluded.epoch,
                     version = excluded.version, seen_from = excluded.seen_from
                 WHERE node_presence.heard_at < excluded.heard_at",
            )
            .bind(each().map(|(node, ..)| node.to_string()).collect::<Vec<_>>())
            .bind(each().map(|(_, ago, _)| millis(*ago)).collect::<Vec<_>>())
            .bind(each().map(|(.., r)| number(r.sessions)).collect::<Vec<_>>())
            .bind(each().map(|(.., r)| number(r.epoch.0)).collect::<Vec<_>>())
            .bind(each().map(|(.., r)| r.version.clone()).collect::<Vec<_>>())
            .bind(
                each()
                    .map(|(.., r)| r.seen_from.map(|ip| ip.to_string()))
                    .collect::<Vec<_>>(),
            )
            .execute(pool)
            .await?;
        }
        let rows = sqlx::query(
            "SELECT id, revision, silent, draining,
                 (extract(epoch FROM clock_timestamp()) * 1000)::bigint - heard_at,
                 sessions, epoch, version, seen_from
             FROM node LEFT JOIN node_presence ON node_presence.node = node.id",
        )
        .fetch_all(pool)
        .await?;
        let known = rows.iter().map(|row| {
            let heard = row.try_get::<Option<i64>, _>(4)?.map(|ago| {
                let report = Report {
                    sessions: row.try_get::<i64, _>(5)?.cast_unsigned(),
                    epoch: Epoch(row.try_get::<i64, _>(6)?.cast_unsigned()),
                    version: row.try_get(7)?,
                    seen_from: row
                        .try_get::<Option<String>, _>(8)?
                        .and_then(|ip| ip.parse().ok()),
                };
                let ago = Duration::from_millis(u64::try_from(ago).unwrap_or_default());
                Ok::<_, sqlx::Error>((ago, report))
            });
            Ok(Known {
                node: row
                    .try_get::<String, _>(0)?
                    .parse()
                    .map_err(|_| Error::Row("node"))?,
                revision: row.try_get::<i64, _>(1)?.cast_unsigned(),
                silent: row.try_get(2)?,
                draining: row.try_get(3)?,
                heard: heard.transpose()?,
            })
        });
        known.collect::<Result<_, Error>>().map(Some)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
