//! Runs the tools of the storage initrd, and keeps their output for error messages.

use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

use crate::system::unblock_signals;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error("{program}: {source}; the node has no storage initrd that goes with its plan")]
    Start { program: String, source: io::Error },
    #[error("`{command}` failed ({status}): {said}")]
    Failed { command: String, status: String, said: String },
}

impl ToolError {
    pub(super) fn failed(command: &str, output: &Output) -> Self {
        let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if said.is_empty() {
            said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        }
        let said = said.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        Self::Failed { command: command.to_owned(), status: output.status.to_string(), said }
    }
}

/// Runs a tool that must succeed. `input` goes to its standard input: scripts, and keys, which arguments would reveal.
pub(super) fn run(program: &str, arguments: &[&str], input: Option<&[u8]>) -> Result<(), ToolError> {
    let output = output(program, arguments, input)?;
    if output.status.success() {
        return Ok(());
    }
    Err(ToolError::failed(&format!("{program} {}", arguments.join(" ")), &output))
}

/// Runs a tool, whether it succeeds or not.
pub(super) fn output(program: &str, arguments: &[&str], input: Option<&[u8]>) -> Result<Output, ToolError> {
    let failed = |source| ToolError::Start { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/bin").env("LC_ALL", "C");
    // There is no udev for which they could wait.
    command.env("MDADM_NO_UDEV", "1").env("DM_DISABLE_UDEV", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = unblock_signals(&mut command).spawn().map_err(failed)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A tool that ends without reading its input reports why.
        let _ = stdin.write_all(input);
    }
    child.wait_with_output().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_tool_said_is_in_the_error() {
        run("/bin/sh", &["-c", "read x; test $x = key"], Some(b"key\n")).unwrap();
        let error = run("/bin/sh", &["-c", "echo no; echo why >&2; exit 3"], None).unwrap_err().to_string();
        assert_eq!(error, "`/bin/sh -c echo no; echo why >&2; exit 3` failed (exit status: 3): why");
        assert!(matches!(run("/no/such/tool", &[], None), Err(ToolError::Start { .. })));
    }
}
