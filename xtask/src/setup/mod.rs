//! Set-up: what this machine lacks for a purpose is installed if possible, and named otherwise.
//!
//! No state is kept between runs. Each piece has a proof: a file or a program that shows that it is installed. So a run
//! with nothing to do costs a few dozen `stat` calls, a piece that was removed is noticed, and one that was not
//! installed by apt counts.

mod apt;
mod axe;
pub(crate) mod bpf;
mod debian;
mod kernels;
pub(crate) mod peers;
mod pieces;
mod python;

use anyhow::bail;

pub(crate) use pieces::Need;
pub(crate) use pieces::program;

/// Makes everything in `needs` available, or fails with a list of all that is missing.
pub(crate) fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    let build = needs.contains(&Need::Build);
    let mut problems = apt::install(&pieces::missing(needs))?;
    if build {
        problems.extend(bpf::install_packages()?);
    }
    problems.extend(peers::ensure(needs)?);
    if problems.is_empty() {
        problems.extend(kernels::ensure(needs)?);
    }
    if problems.is_empty() && needs.contains(&Need::Test) {
        problems.extend(debian::ensure()?);
        problems.extend(python::ensure()?);
        problems.extend(axe::ensure()?);
    }
    if !problems.is_empty() {
        let list: String = problems.iter().map(|p| format!("\n  {p}")).collect();
        bail!("this machine lacks what is needed, and set-up can't install it:{list}")
    }
    if build {
        bpf::install_linker()?;
    }
    Ok(())
}
