use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        pxe_init::boot::run()
    }
    // The kernel runs `/init -q -- NAME` when it needs a module, as boot::run has configured it.
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["-q", "--", name] => pxe_init::load_as_modprobe(name),
        [pxe_init::STAY, words] => match pxe_init::stay(words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bridgehead: the lease is not renewed: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("pxe-init is a node's first process (PID 1); there is nothing to run by hand");
            ExitCode::from(2)
        }
    }
}
