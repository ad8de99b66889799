//! Images and kernels.

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};

use super::frame::{Context, Place, page, part};
use super::words::{exactly, said, when};
use crate::api::documents::{Image, Profile};
use crate::api::{ApiState, Failure, Images};
use crate::base::table::{or_dash, size};
use crate::base::text::percent;
use crate::operate::access::Role;
use crate::provision::image::KernelList;

pub(in crate::api) async fn images(
    State(state): State<ApiState>,
    context: Context,
) -> Result<Response, Failure> {
    let (store, appliance) = (state.images.clone(), state.appliance.clone());
    let read = tokio::task::spawn_blocking(move || {
        Ok::<_, Failure>((Images::list(&*store)?, store.kernels(), appliance.profiles()))
    });
    let (images, kernels, profiles) = read.await.map_err(Failure::internal)??;
    let is_admin = context.may(Role::Admin);
    let body = html! {
        h1 { "Images and kernels" }
        section.pane aria-labelledby="images-title" {
            h2 id="images-title" { "Images" }
            (part("images", &list(&images, is_admin)))
            output.said {}
            @if is_admin { (add_image()) }
        }
        section.pane aria-labelledby="profiles-title" {
            h2 id="profiles-title" { "Profiles" }
            (part("profiles", &of_profiles(&profiles)))
        }
        section.pane aria-labelledby="kernels-title" {
            h2 id="kernels-title" { "Kernels" }
            (part("kernels", &of_kernels(&kernels, is_admin)))
            output.said {}
            @if is_admin { (add_kernel()) }
        }
    };
    Ok(page(&context, Some(Place::Images), "Images and kernels", None, &body))
}

fn list(images: &[Image], is_admin: bool) -> Markup {
    let now = Timestamp::now();
    html! {
        @if images.is_empty() { p.empty { "There are no images yet." } } @else {
            .scroll tabindex="0" role="region" aria-label="Table of images" {
                table {
                    thead { tr {
                        th scope="col" { "Image" }
                        th scope="col" { "Profiles" }
                        th scope="col" { "Size" }
                        th scope="col" { "Stages" }
                        th scope="col" { "Kernel" }
                        th scope="col" { "Added (UTC)" }
                        th scope="col" { "Digest" }
                        @if is_admin { th scope="col" { span.sr { "Remove" } } }
                    } }
                    tbody { @for Image { record, profiles, stages, .. } in images {
                        @let root = record.stage2_blob.as_ref().filter(|_| *stages == 2).unwrap_or(&record.rootfs_blob);
                        tr {
                            th scope="row" { (said(&record.reference)) }
                            td { (said(&or_dash(Some(profiles.join(", "))))) }
                            td { (size(record.kernel_blob.size + record.stage1_blob.size + root.size)) }
                            td { (stages) }
                            td { (said(&record.kernel.version)) }
                            td { time datetime=(exactly(record.added)) { (when(record.added, now)) } }
                            td { code title=(record.digest) { (record.digest.chars().take(19).collect::<String>()) "…" } }
                            @if is_admin { td.does {
                                (remove(&format!("/api/images/{}", percent(&record.reference, "/:@")), &record.reference))
                            } }
                        }
                    } }
                }
            }
        }
    }
}

fn remove(path: &str, what: &str) -> Markup {
    html! {
        form.inline data-method="DELETE" data-path=(path) data-confirm={ "Remove " (said(what)) "?" } {
            button.plain type="submit" aria-label={ "Remove " (said(what)) } { "Remove" }
        }
    }
}

fn add_image() -> Markup {
    html! {
        .adds {
            form.fields data-method="POST" data-path="/api/images" data-stream {
                label { span { "From the Docker engine" }
                    input name="reference" required autocomplete="off" spellcheck="false" placeholder="hello-metal:latest"; }
                button type="submit" { "Add" }
                output {}
            }
            form.fields data-method="POST" data-path="/api/images" data-stream data-file="application/x-tar" {
                label { span { "From a file: " code { "docker save" } " or an OCI layout, as tar" }
                    input type="file" name="file" required; }
                button type="submit" { "Send" }
                output {}
            }
            form.fields data-method="POST" data-path="/api/images/gc"
                data-confirm="Delete what no image, kernel or machine refers to?" {
                button.plain type="submit" { "Free the room of removed images" }
                output {}
            }
        }
    }
}

fn of_profiles(profiles: &[Profile]) -> Markup {
    html! {
        @if profiles.is_empty() { p.empty { "The configuration has no profiles." } } @else {
            .scroll tabindex="0" role="region" aria-label="Table of profiles" {
                table {
                    thead { tr {
                        th scope="col" { "Profile" } th scope="col" { "Boots" } th scope="col" { "Ready" }
                        th scope="col" { "Command line" } th scope="col" { "Problem" }
                    } }
                    tbody { @for profile in profiles { tr {
                        th scope="row" { a href={ "/machines?select=" (percent(&format!("profile={}", profile.name), "")) } { (profile.name) } }
                        td { (said(&or_dash(profile.image.as_ref().or(profile.kernel.as_ref())))) }
                        td { @if profile.ready { "yes" } @else { b.bad { "no" } } }
                        td.wide { code { (said(&profile.cmdline)) } }
                        td.wide { (said(profile.problem.as_deref().unwrap_or_default())) }
                    } } }
                }
            }
        }
    }
}

fn of_kernels(KernelList { default, kernels }: &KernelList, is_admin: bool) -> Markup {
    let now = Timestamp::now();
    html! {
        p.quiet {
            "Images without a kernel boot with "
            @match default {
                Some(name) => { b { (said(name)) } "." }
                None => { "the stock one." }
            }
        }
        @if !kernels.is_empty() {
            .scroll tabindex="0" role="region" aria-label="Table of kernels" {
                table {
                    thead { tr {
                        th scope="col" { "Kernel" } th scope="col" { "Version" } th scope="col" { "Size" }
                        th scope="col" { "Added (UTC)" } th scope="col" { "From" }
                        @if is_admin { th scope="col" { span.sr { "Change" } } }
                    } }
                    tbody { @for kernel in kernels { tr {
                        th scope="row" { (said(&kernel.name)) @if default.as_ref() == Some(&kernel.name) { " (default)" } }
                        td { (said(&kernel.version)) }
                        td { (size(kernel.kernel_blob.size + kernel.stage1_blob.size)) }
                        td { time datetime=(exactly(kernel.added)) { (when(kernel.added, now)) } }
                        td.wide { (said(&kernel.from)) }
                        @if is_admin { td.does {
                            @if default.as_ref() != Some(&kernel.name) {
                                form.inline data-method="PUT" data-path="/api/default-kernel" {
                                    input type="hidden" name="name" value=(kernel.name);
                                    button.plain type="submit" aria-label={ "Make " (said(&kernel.name)) " the default" } { "Make default" }
                                }
                            }
                            (remove(&format!("/api/kernels/{}", percent(&kernel.name, "")), &kernel.name))
                        } }
                    } } }
                }
            }
        }
    }
}

fn add_kernel() -> Markup {
    html! {
        .adds {
            form.fields data-method="POST" data-path="/api/kernels" data-file="application/vnd.debian.binary-package" {
                label { span { "A package, " code { "linux-image-*.deb" } }
                    input type="file" name="file" accept=".deb" required; }
                button type="submit" { "Send" }
                output {}
            }
            form.fields data-method="PUT" data-path="/api/default-kernel" {
                input type="hidden" name="name" data-as="null";
                button.plain type="submit" { "Use the stock kernel by default" }
                output {}
            }
        }
    }
}
