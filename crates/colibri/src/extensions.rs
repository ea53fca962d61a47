//! `/colibri/v1`: uploads of images and of functions' code, beside the Kubernetes API and behind its authentication.
//!
//! | Request | Meaning |
//! |---|---|
//! | `POST /colibri/v1/images[?tag=REFERENCE]` | take in images: an OCI layout or docker archive, as tar |
//! | `GET /colibri/v1/images` | the images that are there |
//! | `GET /colibri/v1/images/digest?reference=REFERENCE` | the digest of an image that was loaded; 404 for others |
//! | `POST /colibri/v1/namespaces/NS/archives` | keep a code archive; answers its digest |
//! | `GET /colibri/v1/namespaces/NS/archives/DIGEST` | whether the namespace has that archive |
//! | `GET /colibri/v1/namespaces/NS/archives/DIGEST/content` | the archive itself |
//!
//! Only the group `system:masters` may use it. A node that is a process of its own serves the same paths.

use std::sync::Arc;

use apiserver::body::{Request, Response, full, json};
use apiserver::{Extension, User};
use functions::{CodeError, CodeStore};
use futures::TryStreamExt;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use node::images::{Images, ImagesError, Reference};
use serde_json::{Value, json as value};
use store::cas::Digest;
use tokio_util::io::StreamReader;

/// Longest archive that is given out.
pub const CONTENT_LIMIT_BYTES: u64 = 64 << 20;

/// Takes uploads into the node's image store.
pub struct Uploads {
    images: Arc<Images>,
}

impl Uploads {
    /// Uploads into `images`.
    pub fn new(images: Arc<Images>) -> Self {
        Self { images }
    }
}

impl Extension for Uploads {
    fn handle(&self, user: User, request: Request) -> BoxFuture<'static, Response> {
        let images = self.images.clone();
        Box::pin(async move {
            match refuse_others(&user) {
                Some(refusal) => refusal,
                None => answer(&images, request).await,
            }
        })
    }
}

/// What everybody but administrators is told.
pub fn refuse_others(user: &User) -> Option<Response> {
    let text = || format!("user {:?} may not use /colibri/v1: it is for administrators", user.name);
    (!user.is_master()).then(|| refuse(StatusCode::FORBIDDEN, &text()))
}

/// Answers a request of a user who may.
pub async fn answer(images: &Images, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches("/colibri/v1/").to_owned();
    let segments: Vec<&str> = path.split('/').collect();
    match (request.method().clone(), segments.as_slice()) {
        (Method::GET, ["images"]) => list(images).await,
        (Method::POST, ["images"]) => load(images, request).await,
        (Method::GET, ["images", "digest"]) => digest(images, &request),
        (Method::GET, ["namespaces", namespace, "archives", digest]) => has(images, namespace, digest),
        (Method::GET, ["namespaces", namespace, "archives", digest, "content"]) => {
            content(images, namespace, digest).await
        }
        (Method::POST, ["namespaces", namespace, "archives"]) => keep(images, namespace, request).await,
        _ => refuse(StatusCode::NOT_FOUND, &format!("there is no {} /colibri/v1/{path}", request.method())),
    }
}

async fn list(images: &Images) -> Response {
    json(StatusCode::OK, &value!({"items": images.list().await}))
}

fn digest(images: &Images, request: &Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let asked = pairs.find(|(key, _)| key == "reference").map(|(_, reference)| reference.into_owned());
    let asked = asked.unwrap_or_default();
    match asked.parse::<Reference>() {
        Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        Ok(reference) => match images.loaded(&reference) {
            Some(image) => json(StatusCode::OK, &value!({"image": image})),
            None => refuse(StatusCode::NOT_FOUND, &format!("the image {reference} was not loaded here")),
        },
    }
}

fn has(images: &Images, namespace: &str, digest: &str) -> Response {
    match digest.parse::<Digest>() {
        Ok(parsed) if images.has_archive(namespace, &parsed) => json(StatusCode::OK, &value!({"digest": digest})),
        _ => has_not(namespace, digest),
    }
}

fn has_not(namespace: &str, digest: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, &format!("namespace {namespace:?} has no archive {digest:?} here"))
}

async fn content(images: &Images, namespace: &str, digest: &str) -> Response {
    let Ok(parsed) = digest.parse::<Digest>() else { return has_not(namespace, digest) };
    match images.archive(namespace, parsed, CONTENT_LIMIT_BYTES).await {
        Ok(Some(archive)) => Response::new(full(archive)),
        Ok(None) => has_not(namespace, digest),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.text()),
    }
}

async fn load(images: &Images, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let name = match pairs.find(|(key, _)| key == "tag").map(|(_, tag)| tag.parse::<Reference>()).transpose() {
        Ok(name) => name,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match images.load(reader(request), name).await {
        Ok(loaded) => json(StatusCode::OK, &value!({"items": loaded})),
        Err(error) => refuse_upload(&error),
    }
}

async fn keep(images: &Images, namespace: &str, request: Request) -> Response {
    if !base::names::is_dns1123_label(namespace) {
        return refuse(StatusCode::BAD_REQUEST, &format!("{namespace:?} is not the name of a namespace"));
    }
    match images.store_archive(namespace, reader(request)).await {
        Ok(stored) => json(StatusCode::OK, &value!(stored)),
        Err(error) => refuse_upload(&error),
    }
}

/// The body as a stream of bytes.
fn reader(request: Request) -> impl tokio::io::AsyncRead + Unpin {
    let body = request.into_body().into_data_stream();
    StreamReader::new(Box::pin(body.map_err(std::io::Error::other)))
}

/// What is wrong with the upload is the user's to know; what is wrong with the disk is for the log.
fn refuse_upload(error: &ImagesError) -> Response {
    if error.is_input() {
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, &error.text());
    }
    tracing::error!(error = error.text(), "an upload failed");
    refuse(StatusCode::INTERNAL_SERVER_ERROR, "the upload could not be stored; the platform's log says why")
}

/// A refusal in the form of the Kubernetes API, so that every client shows its text.
fn refuse(code: StatusCode, message: &str) -> Response {
    let status: Value = value!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "code": code.as_u16(),
    });
    json(code, &status)
}

/// Functions' code in the node's image store.
pub struct Code {
    images: Arc<Images>,
}

impl Code {
    /// Keeps code in `images`.
    pub fn new(images: Arc<Images>) -> Self {
        Self { images }
    }
}

impl CodeStore for Code {
    fn put(&self, namespace: &str, archive: Vec<u8>) -> BoxFuture<'static, Result<String, CodeError>> {
        let (images, namespace) = (self.images.clone(), namespace.to_owned());
        Box::pin(async move {
            let stored = images.store_archive(&namespace, archive.as_slice()).await;
            stored.map(|stored| stored.digest.to_string()).map_err(|error| CodeError(error.text()))
        })
    }

    fn contains(&self, namespace: &str, digest: &str) -> BoxFuture<'static, Result<bool, CodeError>> {
        let found = digest.parse::<Digest>().is_ok_and(|digest| self.images.has_archive(namespace, &digest));
        Box::pin(async move { Ok(found) })
    }
}
