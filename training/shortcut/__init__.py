"""The study of shortcuts: does a network learn more than a confounder?"""
