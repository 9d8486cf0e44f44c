//! Trainings on workers, in processes of their own on this machine.

use burn::backend::{Flex, ops::IntTensorOps};
use burn::server::{CustomOpIr, HandleContainer, RemoteServer, TokenAuthorizer, WebSocketTransport};
use burn::tensor::{Device, TensorData};
use dr_tests::{Program, Served, epochs};
use dr_train::report::{NumberFormat, Report};
use std::fs;
use std::net::TcpListener;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const TOKEN: &str = "a token of this test";

/// One float epoch and two joint ones.
const TRAIN: [&str; 7] = ["train", "--float-epochs", "1", "--epochs", "2", "--batch-size", "64"];

/// The program in a folder with the token.
fn program(folder: &TempDir) -> Program {
    let program = Program::new(env!("CARGO_BIN_EXE_program"), folder.path());
    fs::write(program.at("token"), format!("{TOKEN}\n")).expect("it can be written");
    program
}

fn worker(program: &Program) -> Served {
    program.serve(&["worker", "--port", "0", "--token-file", "token", "--device", "flex"])
}

/// The arguments of a training of so many images, on these devices.
fn on<'a>(devices: &[&'a str], images: &'a str, out: &'a str) -> Vec<&'a str> {
    [&TRAIN, devices, &["--limit-train", images, "--out", out, "-v"]].concat()
}

fn report(program: &Program, out: &str) -> Report {
    Report::load(&program.at(out)).expect("a report")
}

#[test]
fn two_workers_learn_as_one_device_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let workers = [worker(&program), worker(&program)];
    let [first, second] = workers.each_ref().map(|worker| worker.address.as_str());
    let _ = program.outputs(&on(&["--device", "flex"], "512", "here"));
    let _ = program.outputs(&on(&["--device", first, "--token-file", "token"], "512", "there"));
    let both = format!("{first},{second}");
    let (_, log) = program.outputs(&on(&["--devices", &both, "--token-file", "token"], "512", "both"));

    let [here, there, both] = ["here", "there", "both"].map(|out| report(&program, out));
    // The same batches, by other loops. Where weights are rounded, small differences grow.
    for (here, there) in here.history.iter().zip(&there.history) {
        for (format, curve) in &here.curves {
            let (here, there) = (curve.train_loss, there.curves[format].train_loss);
            let tolerance = if *format == NumberFormat::Float { 0.001 } else { 0.1 };
            assert!(
                (here - there).abs() <= tolerance * here,
                "{format}: a loss of {here} here, {there} there"
            );
        }
    }
    // Each half of a batch has BatchNorm statistics of its own.
    let accuracies =
        |report: &Report| report.precisions.iter().map(|result| result.measured.top1).collect::<Vec<_>>();
    let [here, there, both] = [here, there, both].map(|report| accuracies(&report));
    assert!(here.iter().zip(&there).all(|(here, there)| (here - there).abs() <= 10.0), "{here:?}, {there:?}");
    assert!(here.iter().zip(&both).all(|(here, both)| *both >= here - 10.0), "{here:?}, {both:?}");

    // Both have run the operations.
    let told = log.lines().filter_map(|line| line.strip_suffix(" operations of dr-kernels"));
    let counts: Vec<u64> =
        told.map(|line| line.rsplit(' ').next().unwrap_or("").parse().expect("a number")).collect();
    assert!(counts.len() == 2 && counts.iter().all(|&count| count > 1000), "{log}");
    for worker in workers {
        let said = worker.end();
        assert!(said.starts_with("ran ") && said.ends_with(" operations of dr-kernels\n"), "{said}");
    }
}

#[test]
fn a_lost_worker_is_named_and_others_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let (first, second) = (worker(&program), worker(&program));
    let both = format!("{},{}", first.address, second.address);
    let mut training =
        program.start(&on(&["--devices", &both, "--token-file", "token"], "256", "run"), "log");
    let log = || fs::read_to_string(program.at("log")).expect("a log");
    let started = Instant::now();
    while !log().contains("joint training: ") {
        assert!(training.try_wait().expect("a process").is_none(), "{}", log());
        assert!(started.elapsed() < Duration::from_secs(120), "{}", log());
        sleep(Duration::from_millis(50));
    }
    // In the middle of its first epoch.
    sleep(Duration::from_millis(500));
    let (lost, killed) = (second.address.clone(), Instant::now());
    drop(second);
    let code = training.wait().expect("it ends").code();
    assert!(killed.elapsed() < Duration::from_secs(20), "after {:?}", killed.elapsed());
    let log = log();
    assert_eq!(code, Some(1), "{log}");
    let error = format!("error: `{lost}`: the worker is gone\nhint: `dr-train train --resume run` goes on");
    assert!(log.contains(&error), "{log}");

    let other = worker(&program);
    let both = format!("{},{}", first.address, other.address);
    let (_, resumed) = program.outputs(&["train", "--resume", "run", "--devices", &both]);
    assert_eq!(epochs(&resumed), 2, "{resumed}");
    assert_eq!(report(&program, "run").device, both);
}

#[test]
fn what_a_worker_refuses_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let worker = worker(&program);
    let address = worker.address.as_str();
    let train = |address: &str, token: &str| {
        program.error(&["train", "--device", address, "--token-file", token, "--out", "run"])
    };

    fs::write(program.at("wrong"), "another token").expect("it can be written");
    let error = train(address, "wrong");
    assert!(error.contains(&format!("`{address}`: the worker refuses the token")), "{error}");
    fs::write(program.at("empty"), "\n").expect("it can be written");
    assert!(train(address, "empty").contains("`empty`: holds no token"));
    assert!(train(address, "missing").contains("missing"));
    let error = program.error(&["train", "--device", address, "--out", "run"]);
    assert!(error.contains("expected --token-file"), "{error}");

    let error = program.error(&["train", "--device", "flex", "--token-file", "token", "--out", "run"]);
    assert!(error.contains("expected --device or --devices remote:HOST:PORT"), "{error}");

    // It serves one device.
    let of = |devices: &str| {
        ["train", "--device", address, "--devices", devices, "--token-file", "token", "--out", "run"]
            .map(str::to_owned)
    };
    let one = of("1");
    let error = program.error(&one.each_ref().map(String::as_str));
    assert!(error.contains("it serves 1; expected 0 to 0"), "{error}");
    let twice = of(address);
    let error = program.error(&twice.each_ref().map(String::as_str));
    assert!(error.contains("expected one of them"), "{error}");

    let port = address.rsplit(':').next().expect("a port");
    let error = program.error(&["worker", "--port", port, "--token-file", "token", "--device", "flex"]);
    assert!(
        error.starts_with(&format!("error: port {port}: ")) && error.contains("hint: `--port 0`"),
        "{error}"
    );

    let error = train("remote:127.0.0.1:1", "token");
    assert!(error.contains("`remote:127.0.0.1:1`: no worker answers"), "{error}");
    assert!(train("remote:127.0.0.1", "token").contains("expected remote:HOST:PORT"));
}

#[test]
fn another_version_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    // A server with the operations, if any, of another version.
    let serve = |server: RemoteServer| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("remote:{}", listener.local_addr().expect("its address"));
        let authorizer = TokenAuthorizer::new(TOKEN).expect("a token");
        let _guard = runtime.enter();
        let transport = WebSocketTransport::from_listener(listener);
        drop(runtime.spawn(server.with_authorizer(authorizer).serve_async(transport)));
        address
    };
    let train = |address: &str| {
        program.error(&["train", "--device", address, "--token-file", "token", "--out", "run"])
    };

    let device = || [Device::flex()];
    let other = RemoteServer::new(device()).with_custom_op::<Flex, _>(
        "dr-kernels worker",
        |handles: &mut HandleContainer<_>, operation: &CustomOpIr, device| {
            drop(handles.get_int_tensor::<Flex>(&operation.inputs[0]));
            let answer = Flex::int_from_data(TensorData::from([9, 8, 7, 0, 0]), device);
            handles.register_int_tensor::<Flex>(&operation.outputs[0].id, answer);
        },
    );
    let error = train(&serve(other));
    assert!(error.contains("a worker of version 9.8.7: expected "), "{error}");
    let error = train(&serve(RemoteServer::new(device())));
    assert!(error.contains("not a `dr-train worker`"), "{error}");
    runtime.shutdown_background();
}
