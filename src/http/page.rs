//! `GET /`: the live page. Plain HTML, CSS and JavaScript modules that are part of the binary; they load nothing from elsewhere, and
//! do nothing that any client could not do: they read [`super::events`] and call the doors.

use std::sync::LazyLock;

use axum::extract::{OriginalUri, Path};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::problem::Problem;

/// What the page may do: itself, and the doors. No other host, no inline code, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page.
struct File {
    content_type: &'static str,
    text: &'static str,
    /// Names these bytes, so that a browser asks again and gets them only once.
    tag: String,
}

impl File {
    fn new(content_type: &'static str, text: &'static str) -> File {
        File { content_type, text, tag: format!("\"{}\"", &blake3::hash(text.as_bytes()).to_hex()[..16]) }
    }
}

macro_rules! file {
    ($content_type:expr, $name:literal) => {
        ($name, File::new($content_type, include_str!(concat!("page/", $name))))
    };
}

static PAGE: LazyLock<File> = LazyLock::new(|| File::new(HTML, include_str!("page/index.html")));

static ASSETS: LazyLock<[(&str, File); 8]> = LazyLock::new(|| {
    [
        file!(CSS, "page.css"),
        file!(SCRIPT, "page.js"),
        file!(SCRIPT, "base.js"),
        file!(SCRIPT, "chart.js"),
        file!(SCRIPT, "figures.js"),
        file!(SCRIPT, "memory.js"),
        file!(SCRIPT, "plan.js"),
        file!(SCRIPT, "row.js"),
    ]
});

pub(super) async fn page(headers: HeaderMap) -> Response {
    answer(&PAGE, &headers)
}

pub(super) async fn asset(
    Path(name): Path<String>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let found = ASSETS.iter().find(|(file, _)| *file == name);
    found.map(|(_, file)| answer(file, &headers)).ok_or_else(|| Problem::no_route(uri.path()))
}

fn answer(file: &File, headers: &HeaderMap) -> Response {
    let safe = [
        (ETAG, file.tag.as_str()),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    if known.flat_map(|value| value.split(',')).any(|tag| tag.trim().trim_start_matches("W/") == file.tag) {
        return (StatusCode::NOT_MODIFIED, safe).into_response();
    }
    (safe, [(CONTENT_TYPE, file.content_type)], file.text).into_response()
}
