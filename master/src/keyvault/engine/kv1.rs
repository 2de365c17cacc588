//! KV version 1: a path, an object, and the last one written stays.

use wavry_credentials::bearer::Json;

use super::{At, folder, list, name};
use crate::keyvault::{
    barrier::Change,
    call::{Answer, Call, Operation, Planned, Refusal},
};

pub(super) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    match call.operation {
        Operation::Read => {
            let entry = at.barrier.read(&at.entry(name(at.rest)?)).await?;
            let entry = entry.ok_or(Refusal::Absent)?;
            let data = Json::stored(entry.value).into();
            Ok(Planned::answer(Answer::Data(data)))
        }
        Operation::List => list(at, &folder(at.rest), call).await,
        Operation::Create | Operation::Update => {
            let body: Json = match &call.body {
                Some(_) => call.body()?,
                None => return Err(Refusal::invalid("missing data fields")),
            };
            if !body.is_object() {
                return Err(Refusal::invalid("a secret is an object"));
            }
            let mut change = Change::default();
            change.put(at.entry(name(at.rest)?), body.into());
            Ok(Planned::done(change))
        }
        Operation::Delete => {
            let mut change = Change::default();
            change.delete(at.entry(name(at.rest)?));
            Ok(Planned::done(change))
        }
        Operation::Patch => Err(Refusal::Unsupported),
    }
}

pub(super) async fn exists(at: At<'_>) -> Result<bool, Refusal> {
    Ok(at.barrier.read(&at.entry(at.rest)).await?.is_some())
}
