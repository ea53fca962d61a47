def handle(request):
    name = request.query.get("name", "World")
    return f"Hello {name} from Python\n"
