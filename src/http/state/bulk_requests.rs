//! Counts the bulk requests in progress, by client. Their number is limited, because each may hold megabytes of answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::fairness::{self, ClientId};
use crate::http::error::{ApiError, Code};
use crate::telemetry::metrics::{GaugeGuard, Metrics};

/// Time after which clients should retry.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The bulk requests in progress.
pub(crate) struct BulkRequests {
    clients: Arc<Mutex<HashMap<ClientId, usize>>>,
    metrics: Arc<Metrics>,
}

/// A bulk request in progress; dropping it ends it.
pub(crate) struct BulkRequest {
    clients: Arc<Mutex<HashMap<ClientId, usize>>>,
    client: ClientId,
    _gauge: GaugeGuard,
}

impl BulkRequests {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { clients: Arc::default(), metrics }
    }

    /// Begins a request of this client. `max` is the number of requests at a time, which the clients share.
    ///
    /// # Errors
    /// `overloaded`.
    pub(crate) fn begin(&self, client: ClientId, max: usize) -> Result<BulkRequest, ApiError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: usize = clients.values().sum();
        let own = clients.get(&client).copied().unwrap_or(0);
        let count = clients.len() + usize::from(own == 0);
        if !fairness::fits(max as u64, taken as u64, own as u64, count, 1) {
            let detail = format!(
                "{max} bulk requests are in progress (bulk.max_requests); send the lines in one of them, or later"
            );
            return Err(ApiError::new(Code::Overloaded, detail)
                .retry_after(RETRY_AFTER)
                .close_connection());
        }
        *clients.entry(client).or_default() += 1;
        let gauge = GaugeGuard::new(&self.metrics.bulk_requests);
        Ok(BulkRequest { clients: Arc::clone(&self.clients), client, _gauge: gauge })
    }
}

impl Drop for BulkRequest {
    fn drop(&mut self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = clients.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_are_limited_and_shared() {
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let requests = BulkRequests::new(Arc::clone(&metrics));
        let begin = |client| requests.begin(ClientId(client), 4);
        let first: Vec<_> = (0..4).map(|_| begin(1).ok().unwrap()).collect();
        assert!(begin(1).is_err());
        // Another client gets its share out of the reserve.
        let other = begin(2).ok().unwrap();
        assert!(begin(2).is_err());
        assert_eq!(metrics.bulk_requests.get(), 5);
        drop((first, other));
        assert_eq!(metrics.bulk_requests.get(), 0);
        assert!(begin(2).is_ok());
    }
}
