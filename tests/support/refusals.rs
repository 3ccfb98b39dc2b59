//! What doors refuse, held to what the OpenAPI document tells of it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "for tests")]

use std::collections::BTreeSet;

use axum::Router;
use axum::body::Body;

use crate::contract::{Contract, Operation, path};
use crate::doors::ask;
use crate::support::Answer;

/// The path of an operation with its parameters as the document shows them, but for `of`: the stream, the model, the detector or the file.
pub fn place(contract: &Contract, operation: &Operation, of: Option<&str>) -> String {
    let parameters = contract.parameters(operation);
    let in_path = parameters.iter().filter(|((place, _), _)| place == "path");
    let value = |name: &str, parameter| of.filter(|_| name != "version").unwrap_or(Contract::shown(parameter)[0]);
    let values: Vec<(&str, &str)> = in_path.map(|((_, name), parameter)| (name.as_str(), value(name, parameter))).collect();
    path(&operation.path, &values)
}

/// What was refused, as the document tells it.
pub struct Refusals<'a> {
    pub contract: &'a Contract,
    /// Operation, status, code.
    pub seen: BTreeSet<(String, u16, String)>,
}

impl Refusals<'_> {
    /// Asks, and holds the answer to be a refusal with this code that the document tells of.
    pub async fn refused(
        &mut self,
        router: &Router,
        id: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
        code: &str,
    ) {
        let answer = ask(router, &self.contract.operation(id).method, path, headers, body).await;
        assert_eq!(self.note(id, &answer), code, "{id} {path}: {answer:?}");
    }

    /// Its code is given back; none of what is no refusal in either shape.
    pub fn note(&mut self, id: &str, answer: &Answer) -> String {
        assert!(answer.status >= 400, "{id}: {answer:?}");
        let code = self.contract.hold(self.contract.operation(id), answer).unwrap_or_default();
        self.seen.insert((id.to_owned(), answer.status, code.clone()));
        code
    }
}
