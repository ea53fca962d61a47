export function handle(event, context) {
  context.logger.info(`event ${event.id} of type ${event.type}`);
  return { greeting: `hello ${event.data.name}` };
}
