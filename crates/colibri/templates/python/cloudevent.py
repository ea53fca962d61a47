def handle(event, context):
    context.logger.info("event %s of type %s", event.id, event.type)
    return {"greeting": f"hello {event.data['name']}"}
