def text(lines, pictures):
    return ""
