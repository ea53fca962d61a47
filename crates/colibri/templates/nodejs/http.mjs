export function handle(request) {
  const { name = "world" } = request.query;
  return `hello ${name}\n`;
}
