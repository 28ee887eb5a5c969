//! The document that describes the API, generated from the handlers.
//!
//! It is committed as `openapi/arm.json`; a test compares the two. To renew it:
//! `HOLDFAST_WRITE_OPENAPI=1 cargo test -p holdfast-api --lib openapi`.

use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::ArrayItems;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContactBuilder, InfoBuilder, License, ObjectBuilder, OpenApi, RefOr,
    Required, Schema, SchemaFormat, Type,
};

/// OpenAPI 3.1, built from the handlers.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = crate::table_of_contents().into_openapi();
    document.info = InfoBuilder::new()
        .title("Holdfast")
        .version(crate::arm::api_version::OURS)
        .description(Some(
            "Managed backup and restore of PostgreSQL servers, spoken as Azure Resource Manager speaks it. Any api-version of the form YYYY-MM-DD or YYYY-MM-DD-preview is served; fixed path segments are matched without case.",
        ))
        .license(Some(License::new("Apache-2.0")))
        .contact(Some(ContactBuilder::new().name(Some("Holdfast")).build()))
        .build();
    let bearer = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .build(),
    );
    let mut components = document.components.take().unwrap_or_default();
    if let Some(event) = components.schemas.get_mut("Event") {
        nothing_required(event);
    }
    if let Some(RefOr::T(Schema::Object(list))) = components.schemas.get_mut("List_Event")
        && let Some(RefOr::T(Schema::Array(events))) = list.properties.get_mut("value")
        && let ArrayItems::RefOrSchema(event) = &mut events.items
    {
        nothing_required(event);
    }
    document.components = Some(
        ComponentsBuilder::from(components)
            .security_scheme("bearer", bearer)
            .build(),
    );
    document.security = Some(vec![SecurityRequirement::new(
        "bearer",
        Vec::<String>::new(),
    )]);
    for item in document.paths.paths.values_mut() {
        item.parameters
            .get_or_insert_default()
            .push(api_version().into());
    }
    document
}

/// `$select` leaves out any member of an event.
fn nothing_required(schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::Object(object)) = schema {
        object.required.clear();
    }
}

fn api_version() -> Parameter {
    ParameterBuilder::new()
        .name("api-version")
        .parameter_in(ParameterIn::Query)
        .required(Required::True)
        .description(Some("YYYY-MM-DD, with or without -preview."))
        .schema(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .pattern(Some(r"^\d{4}-\d{2}-\d{2}(-preview)?$"))
                .format(None::<SchemaFormat>),
        ))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_document_is_the_one_of_the_handlers() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../openapi/arm.json");
        let mut ours = document().to_pretty_json().expect("JSON");
        ours.push('\n');
        if std::env::var_os("HOLDFAST_WRITE_OPENAPI").is_some() {
            std::fs::write(file, &ours).expect("writes");
        }
        let committed = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            committed == ours,
            "openapi/arm.json is out of date; renew it with HOLDFAST_WRITE_OPENAPI=1"
        );
    }

    #[test]
    fn every_operation_has_its_own_name() {
        let document = document();
        let mut names: Vec<String> = document
            .paths
            .paths
            .values()
            .flat_map(|item| {
                [
                    &item.get,
                    &item.put,
                    &item.post,
                    &item.patch,
                    &item.delete,
                    &item.head,
                ]
                .into_iter()
                .flatten()
                .filter_map(|operation| operation.operation_id.clone())
                .collect::<Vec<_>>()
            })
            .collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(all >= 35, "{all}");
    }
}
