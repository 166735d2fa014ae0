//! Types that express how many images an input has. Each [`Endpoint`](super::endpoint::Endpoint) names one of them, so
//! the compiler knows, for example, that a caption has exactly one image.

use std::future::Future;

use futures_util::future::join_all;

use super::image_args::SharedImageFuture;
use crate::http::error::ApiError;
use crate::task::{ImageInfo, PreparedImage};

/// A number of images: exactly one, at most one, or any.
pub(crate) trait ImageArity: 'static {
    /// One `T` for each image of an input, in the order of the images.
    type Each<T: Send + Sync>: Send + Sync;

    /// Converts the value of each image.
    fn map<T: Send + Sync, U: Send + Sync>(
        images: Self::Each<T>,
        convert: impl FnMut(T) -> U,
    ) -> Self::Each<U>;

    /// Returns a value for each image.
    fn map_ref<T: Send + Sync, U: Send + Sync>(
        images: &Self::Each<T>,
        convert: impl FnMut(&T) -> U,
    ) -> Self::Each<U>;

    /// Waits until all images are fetched and decoded.
    ///
    /// # Errors
    /// The error of the first image that failed, in the order of the images.
    fn wait(
        images: Self::Each<SharedImageFuture>,
    ) -> impl Future<Output = Result<Self::Each<PreparedImage>, ApiError>> + Send;

    /// Returns the description of each image.
    fn infos(images: &Self::Each<PreparedImage>) -> Self::Each<ImageInfo>;
}

/// Exactly one image.
pub(crate) struct OneImage;

/// One image or none.
pub(crate) struct OptionalImage;

/// Any number of images; an endpoint that needs at least one image checks for that in its `plan`.
pub(crate) struct ManyImages;

impl ImageArity for OneImage {
    type Each<T: Send + Sync> = T;

    fn map<T: Send + Sync, U: Send + Sync>(image: T, mut convert: impl FnMut(T) -> U) -> U {
        convert(image)
    }

    fn map_ref<T: Send + Sync, U: Send + Sync>(image: &T, mut convert: impl FnMut(&T) -> U) -> U {
        convert(image)
    }

    async fn wait(image: SharedImageFuture) -> Result<PreparedImage, ApiError> {
        image.await
    }

    fn infos(image: &PreparedImage) -> ImageInfo {
        image.info
    }
}

impl ImageArity for OptionalImage {
    type Each<T: Send + Sync> = Option<T>;

    fn map<T: Send + Sync, U: Send + Sync>(
        image: Option<T>,
        convert: impl FnMut(T) -> U,
    ) -> Option<U> {
        image.map(convert)
    }

    fn map_ref<T: Send + Sync, U: Send + Sync>(
        image: &Option<T>,
        convert: impl FnMut(&T) -> U,
    ) -> Option<U> {
        image.as_ref().map(convert)
    }

    async fn wait(image: Option<SharedImageFuture>) -> Result<Option<PreparedImage>, ApiError> {
        match image {
            Some(image) => image.await.map(Some),
            None => Ok(None),
        }
    }

    fn infos(image: &Option<PreparedImage>) -> Option<ImageInfo> {
        image.as_ref().map(|image| image.info)
    }
}

impl ImageArity for ManyImages {
    type Each<T: Send + Sync> = Vec<T>;

    fn map<T: Send + Sync, U: Send + Sync>(images: Vec<T>, convert: impl FnMut(T) -> U) -> Vec<U> {
        images.into_iter().map(convert).collect()
    }

    fn map_ref<T: Send + Sync, U: Send + Sync>(
        images: &Vec<T>,
        convert: impl FnMut(&T) -> U,
    ) -> Vec<U> {
        images.iter().map(convert).collect()
    }

    async fn wait(images: Vec<SharedImageFuture>) -> Result<Vec<PreparedImage>, ApiError> {
        join_all(images).await.into_iter().collect()
    }

    fn infos(images: &Vec<PreparedImage>) -> Vec<ImageInfo> {
        images.iter().map(|image| image.info).collect()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future;

    use super::*;
    use crate::engine::testing::fake;
    use crate::http::error::Code;

    fn ready(result: Result<PreparedImage, ApiError>) -> SharedImageFuture {
        future::ready(result).boxed().shared()
    }

    fn failed(code: Code) -> SharedImageFuture {
        ready(Err(ApiError::new(code, "as told")))
    }

    #[tokio::test]
    async fn many_images_keep_their_order_and_the_first_error_wins() {
        let images = vec![ready(Ok(fake::image(1))), ready(Ok(fake::image(2)))];
        let found = ManyImages::wait(images).await.unwrap();
        let ids = [fake::image(1), fake::image(2)].map(|image| image.info.id);
        assert_eq!(ManyImages::map(ManyImages::infos(&found), |info| info.id), ids);
        let errors = vec![failed(Code::ImageNotFound), failed(Code::ImageTooLarge)];
        assert_eq!(ManyImages::wait(errors).await.unwrap_err().code, Code::ImageNotFound);
    }

    #[tokio::test]
    async fn no_image_is_no_error_and_one_image_is_itself() {
        assert!(OptionalImage::wait(None).await.unwrap().is_none());
        let found = OptionalImage::wait(Some(ready(Ok(fake::image(1))))).await.unwrap();
        assert_eq!(OptionalImage::infos(&found), Some(fake::image(1).info));
        let found = OneImage::wait(ready(Ok(fake::image(3)))).await.unwrap();
        assert_eq!(OneImage::infos(&found), fake::image(3).info);
    }
}
