//! What describes the doors: a document for machines, `/openapi.json`, and Swagger UI over it for people, `/docs`.
//!
//! The document is written by hand and `tests/openapi.rs` holds it to the doors. All of Swagger UI is in the binary, and the browser
//! is told to run and load nothing else.

use std::sync::Arc;

use axum::extract::{OriginalUri, Path};
use axum::http::HeaderName;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Redirect, Response};
use utoipa_swagger_ui::Config;

use super::problem::Problem;

/// The OpenAPI document.
const DOCUMENT: &str = include_str!("openapi.json");

/// Swagger UI writes its styles into elements and draws its icons from `data:`; scripts are files alone.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src \
                      'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 2] = [(CONTENT_SECURITY_POLICY, POLICY), (X_CONTENT_TYPE_OPTIONS, "nosniff")];

pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT)
}

/// To the folder, whose files name each other without it; relative, because a proxy may have put another folder around it.
pub(super) async fn docs() -> Redirect {
    Redirect::permanent("docs/")
}

pub(super) async fn index(OriginalUri(uri): OriginalUri) -> Result<Response, Problem> {
    page("", uri.path())
}

pub(super) async fn file(Path(file): Path<String>, OriginalUri(uri): OriginalUri) -> Result<Response, Problem> {
    page(&file, uri.path())
}

/// A file of Swagger UI.
fn page(file: &str, path: &str) -> Result<Response, Problem> {
    // Its validator is a site that would be sent the document's address.
    let config = Config::new(["../openapi.json"]).use_base_layout().validator_url("none").display_request_duration(true);
    match utoipa_swagger_ui::serve(file, Arc::new(config)) {
        Ok(Some(file)) => Ok((HEADERS, [(CONTENT_TYPE, file.content_type)], file.bytes).into_response()),
        Ok(None) => Err(Problem::no_route(path)),
        Err(_) => Err(Problem::internal()),
    }
}
