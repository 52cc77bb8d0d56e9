"""The study of other hospitals: which regularisation, chosen at home, transfers?"""
