//! The recipe's `[stream]`: what arrives when.

use candlewick_core::{Scenario, Stream};
use candlewick_data::{
    ClassIncremental, Domain, Loader, Order, class_incremental, domain_incremental, multi_domain,
};
use serde::{Deserialize, Serialize};

use crate::sets::Images;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamTable {
    #[serde(default)]
    pub kind: StreamKind,
    #[serde(default)]
    pub first: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub increment: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<Vec<usize>>,
    /// Where the names of images say their domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Domain>,
    #[serde(default)]
    pub order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum StreamKind {
    #[default]
    #[serde(rename = "class-incremental")]
    Class,
    #[serde(rename = "task-incremental")]
    Task,
    #[serde(rename = "domain-incremental")]
    Domain,
    #[serde(rename = "multi-domain")]
    Multi,
}

impl StreamTable {
    /// The stream of these images; an error names the key below `stream`.
    pub fn build(&self, images: &Images, loader: &Loader) -> candlewick_data::Result<Stream> {
        let refuse = |key: &str, problem: &str| Err(candlewick_data::Error::setting(key, problem));
        let parts = &images.parts;
        let sized = self.first > 0 || self.increment.is_some() || self.sizes.is_some();
        match &images.several {
            Some(_) if self.kind != StreamKind::Multi => {
                return refuse(
                    "kind",
                    "several data sets make a \"multi-domain\" stream; set it, or give one data set",
                );
            }
            Some(_) if sized || self.domain.is_some() => {
                return refuse(
                    "kind",
                    "\"multi-domain\" has a task for each data set; remove first, increment, sizes and domain",
                );
            }
            Some(several) => return multi_domain(several, &self.order, loader),
            None if self.kind == StreamKind::Multi => {
                return refuse(
                    "kind",
                    "\"multi-domain\" is of several data sets; list them as [[data.sets]]",
                );
            }
            None => {}
        }
        if self.kind == StreamKind::Domain {
            return match self.domain {
                _ if sized => refuse(
                    "kind",
                    "\"domain-incremental\" has a task for each domain; remove first, increment and sizes",
                ),
                Some(domain) => domain_incremental(parts, domain, &self.order, loader),
                None => refuse(
                    "domain",
                    "missing: say where names of images have their domain, \"file\" or \"folder\"",
                ),
            };
        }
        if self.domain.is_some() {
            return refuse("domain", "belongs to kind = \"domain-incremental\"");
        }
        let spec = ClassIncremental {
            first: self.first,
            increment: self.increment,
            sizes: self.sizes.clone(),
            order: self.order.clone(),
        };
        let mut stream = class_incremental(parts, &spec, loader)?;
        if self.kind == StreamKind::Task {
            stream.scenario = Scenario::TaskIncremental;
        }
        Ok(stream)
    }
}
