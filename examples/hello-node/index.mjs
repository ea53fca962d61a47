export function handle(request) {
  const { name = "World" } = request.query;
  return `Hello ${name} from JavaScript\n`;
}
