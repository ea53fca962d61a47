#!/bin/sh
# Starts the executable that the handler names, else the only one at the top of the code.
fail() {
    echo "$1" >&2
    [ ! -e /dev/termination-log ] || echo "$1" >/dev/termination-log
    exit 1
}
cd "${COLIBRI_CODE:=/code}" || fail "there is no code at $COLIBRI_CODE"
if [ -n "$COLIBRI_HANDLER" ]; then
    [ -f "$COLIBRI_HANDLER" ] || fail "handler $COLIBRI_HANDLER: the code has no such file; it has: $(ls | head -10 | tr '\n' ' ')"
    [ -x "$COLIBRI_HANDLER" ] || fail "handler $COLIBRI_HANDLER: the file is not executable; run chmod +x and deploy again"
    exec "./$COLIBRI_HANDLER"
fi
found=
for file in *; do
    [ -f "$file" ] && [ -x "$file" ] || continue
    [ -z "$found" ] || fail "the code has several executables, $found and $file; name one in spec.handler"
    found=$file
done
[ -n "$found" ] || fail "the code has no executable at its top; run chmod +x on it, or name it in spec.handler"
exec "./$found"
